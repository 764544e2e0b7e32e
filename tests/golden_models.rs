//! The networks by themselves, on what other pipelines gave them: the wider UNets, added conditioning,
//! control residuals, the encoder half of the autoencoder, the second text encoder.

mod cases;

use candle_core::{DType, Device, IndexOp, Tensor};
use cases::controls::described_controls;
use cases::{Case, TestResult, cases, run_all};
use serde_json::Value;
use tweedie::NoiseLevel;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call};
use tweedie::layers::Weights;
use tweedie::models::{
    Autoencoder, AutoencoderConfig, AutoencoderKl, ClipTextConfig, ClipTextModel, ControlResiduals, Halves,
    UNet2DConditionConfig, UNet2DConditionModel,
};

const TOLERANCE: f64 = 1e-4;

fn is_latent_diffusion(json: &Value) -> bool {
    !["pixel", "txt2img-pag", "txt2img-merged"].contains(&json["kind"].as_str().unwrap_or_default())
        && json.get("lora").is_none()
        && json.get("embedding").is_none()
        && json["weights"] != "fp16"
}

fn load<T>(
    case: &Case,
    component: &'static str,
    build: impl FnOnce(&Weights<'_>, &ConfigFields) -> tweedie::Result<T>,
) -> TestResult<T> {
    let files = ModelFiles::folder(&case.model())?;
    let name = format!("{component}/config.json");
    let fields = ConfigFields::from_json(component, &files.read_text(&name)?, &files.path(&name))?;
    let checkpoint = Checkpoint::open(&files, component, Precision::Full, DType::F32, &Device::Cpu)?;
    let model = build(&Weights::new(&checkpoint), &fields)?;
    checkpoint.finish(&[])?;
    Ok(model)
}

fn unet(case: &Case) -> TestResult {
    // An adapter's residuals enter elsewhere than a ControlNet's; whole pipelines are run with it.
    if !described_controls(&case.json).is_empty() && !case.stages.contains_key("controlnet.0.mid") {
        return Ok(());
    }
    let unet = load(case, "unet", |weights, fields| {
        UNet2DConditionModel::new(weights, UNet2DConditionConfig::from_fields(fields)?, DType::F32)
    })?;
    let optional = |name: &str| case.stages.get(name).cloned();
    let rows = case.stage("unet.0.in")?.dim(0)?;
    // Distilled networks are told the guidance; the others do not look at it.
    let weight = case.json["guidance_scale"].as_f64().map_or(0.0, |scale| scale - 1.0);
    let conditioning = Conditioning {
        guidance: Some(Tensor::full(weight as f32, rows, &Device::Cpu)?),
        pooled: optional("unet.0.text_embeds"),
        time_ids: optional("unet.0.time_ids"),
        ..Conditioning::text(case.stage("unet.0.encoder_hidden_states")?.clone())
    };
    let down: Vec<_> = (0..).map_while(|i| optional(&format!("controlnet.0.down.{i:02}"))).collect();
    let control = optional("controlnet.0.mid").map(|mid| ControlResiduals {
        down,
        mid: Some(mid),
        ..ControlResiduals::default()
    });
    let x = case.stage("unet.0.in")?;
    // The network is told the timestep alone.
    let level = |timestep: f64| NoiseLevel::from_sigma(timestep, 1.0);
    let (t, cache) = (case.numbers("unet.t")?[0], Cache::default());
    let call = Call::new(x, level(t), &conditioning, &cache);
    let out = unet.forward_controlled(&call, control.as_ref())?;
    case.check("unet.0.out", &out, TOLERANCE)?;

    // Each row has its own timestep: another one in the last row changes that row alone.
    let mut mixed = vec![level(t); rows];
    mixed[rows - 1] = level(7.0);
    let mixed = unet.forward_controlled(&Call::of_rows(x, &mixed, &conditioning, &cache), control.as_ref())?;
    if rows > 1 {
        let distance = (mixed - &out)?.abs()?.flatten_from(1)?.max(1)?.to_vec1::<f32>()?;
        assert!(distance[0] == 0.0 && distance[rows - 1] > 1e-3, "{}: {distance:?}", case.name);
    }
    Ok(())
}

#[test]
fn golden_first_call_of_every_unet() -> TestResult {
    run_all(&cases("cases", is_latent_diffusion)?, unet);
    Ok(())
}

fn encode(case: &Case) -> TestResult {
    let vae = load(case, "vae", |weights, fields| {
        AutoencoderKl::new(weights, AutoencoderConfig::from_fields(fields)?, Halves::Both, DType::F32)
    })?;
    for i in 0.. {
        let Some(images) = case.stages.get(&format!("vae.encode.{i}.in")) else { break };
        let latents = vae.encode(images)?;
        case.check(&format!("vae.encode.{i}.mean"), latents.mode(), TOLERANCE)?;
        case.check(&format!("vae.encode.{i}.logvar"), &latents.log_variance, TOLERANCE)?;
        let ones = latents.mean.ones_like()?;
        let shifted = (&latents.mean + latents.log_variance.affine(0.5, 0.0)?.exp()?)?;
        case.check_against("a sample", &latents.sample(&ones)?, &shifted, 1e-6)?;
    }
    Ok(())
}

#[test]
fn golden_encoder_of_every_autoencoder() -> TestResult {
    // One that stands in for the model's own is looked at where whole pipelines are.
    let own = |json: &Value| json.get("vae").is_none();
    let encodes = |json: &Value| is_latent_diffusion(json) && own(json) && json.get("init_image").is_some();
    run_all(&cases("cases", encodes)?, encode);
    Ok(())
}

fn text_encoders(case: &Case) -> TestResult {
    for (folder, stage) in [("text_encoder", "text"), ("text_encoder_2", "text_2")] {
        if !case.model().join(folder).exists() {
            continue;
        }
        let encoder =
            load(case, folder, |weights, fields| ClipTextModel::new(weights, ClipTextConfig::from_fields(fields)?))?;
        for text in ["prompt", "negative"] {
            let Some(ids) = case.stages.get(&format!("{stage}.{text}.input_ids")) else { continue };
            let output = encoder.forward(&ids.to_dtype(DType::U32)?)?;
            let penultimate = &output.hidden_states[output.hidden_states.len() - 2];
            let outputs = [
                ("pooler_output", Some(&output.pooled)),
                ("text_embeds", output.text_embeds.as_ref()),
                ("last_hidden_state", Some(&output.last_hidden_state)),
                ("penultimate", Some(penultimate)),
            ];
            for (name, got) in outputs {
                let name = format!("{stage}.{text}.{name}");
                if let (Some(got), true) = (got, case.stages.contains_key(&name)) {
                    case.check(&name, got, TOLERANCE)?;
                }
            }
            // A batch of two gives each row what it gives alone.
            let twice = encoder.forward(&Tensor::cat(&[ids, ids], 0)?.to_dtype(DType::U32)?)?;
            case.check_against("a batch", &twice.last_hidden_state.i(1)?, &output.last_hidden_state.i(0)?, 0.0)?;
        }
    }
    Ok(())
}

#[test]
fn golden_outputs_of_every_text_encoder() -> TestResult {
    run_all(&cases("cases", is_latent_diffusion)?, text_encoders);
    Ok(())
}
