//! Losses, gradients, AdamW and moving averages as PyTorch and diffusers compute them.

mod cases;

use candle_core::{DType, Device, Tensor};
use cases::{TestResult, roots};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network, PredictionType};
use tweedie::layers::{Weights, with_gradients};
use tweedie::models::{UNet2DConfig, UNet2DModel};
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::{
    AdamW, AdamWConfig, Ema, FlatLayout, ForwardProcess, LossWeighting, NoisyBatch, Objective, ParameterSource,
    Parameters, clip_global_norm, global_norm,
};

/// Of a loss, and of a gradient's largest value; the reference's f32 is within 3e-6 of f64.
const TOLERANCE: f64 = 1e-4;
/// Of a weight, but for [`FAR_SHARE`] of them: where a gradient is nearly zero AdamW makes a step of the size of the
/// learning rate of its rounding error.
const WEIGHT_TOLERANCE: f64 = 1e-5;
const FAR_SHARE: f64 = 1e-3;

type Tensors = HashMap<String, Tensor>;

/// The folder of a root that has one, its numbers, and its root.
fn folders() -> TestResult<Vec<(PathBuf, Value, PathBuf)>> {
    let mut found = Vec::new();
    for root in roots() {
        let folder = root.join("training");
        if let Ok(text) = std::fs::read_to_string(folder.join("training.json")) {
            found.push((folder, serde_json::from_str(&text)?, root));
        }
    }
    assert!(!found.is_empty(), "no golden case of training was found");
    Ok(found)
}

fn load(folder: &Path, name: &str) -> TestResult<Tensors> {
    Ok(candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu)?)
}

/// A network in training and its noise schedule.
fn network(root: &Path, model: &Value) -> TestResult<(UNet2DModel, Parameters, NoiseSchedule)> {
    let files = ModelFiles::folder(&root.join("models").join(model.as_str().ok_or("no model")?))?;
    let read = |component, name: &str| ConfigFields::from_json(component, &files.read_text(name)?, &files.path(name));
    let config = UNet2DConfig::from_fields(&read("unet", "unet/config.json")?)?;
    let schedule = NoiseSchedule::from_config(&read("scheduler", "scheduler/scheduler_config.json")?)?;
    let checkpoint = Checkpoint::open(&files, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
    let source = ParameterSource::from_weights(&checkpoint);
    let unet = UNet2DModel::new(&Weights::new(&source), config, DType::F32)?;
    let parameters = source.finish()?;
    checkpoint.finish(&[])?;
    Ok((unet, parameters, schedule))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn timesteps(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|t| t as usize).collect()
}

#[track_caller]
fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    let error = (got - want).abs() / want.abs().max(1e-12);
    assert!(error <= tolerance, "{what}: {got} and {want} differ by {error:.1e}");
}

fn all_close(what: &str, got: &[f64], want: &Value, tolerance: f64) {
    let want = numbers(want);
    assert_eq!(got.len(), want.len(), "{what}");
    got.iter().zip(want).for_each(|(got, want)| close(what, *got, want, tolerance));
}

fn per_image(objective: &Objective, output: &Tensor, batch: &NoisyBatch) -> TestResult<Vec<f64>> {
    Ok(objective.losses(output, batch)?.to_dtype(DType::F64)?.to_vec1()?)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Compares gradients tensor by tensor, but for those that are exactly zero and hold rounding errors.
fn check_gradients(layout: &FlatLayout, got: &[f32], want: &Tensors, zero: &[&str]) -> TestResult {
    assert_eq!(layout.slots().len(), want.len(), "the reference has the same parameters");
    for slot in layout.slots().iter().filter(|slot| !zero.contains(&slot.name.as_str())) {
        let want = want.get(&slot.name).ok_or_else(|| format!("no {}", slot.name))?;
        assert_eq!(want.dims(), slot.shape, "{}", slot.name);
        let want = want.flatten_all()?.to_vec1::<f32>()?;
        let largest = want.iter().fold(0f32, |most, g| most.max(g.abs()));
        let off = got[slot.range.clone()].iter().zip(&want).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        let error = f64::from(off / largest);
        assert!(error <= TOLERANCE, "the gradient of {} differs by {error:.1e}", slot.name);
    }
    Ok(())
}

fn check_weights(what: &str, layout: &FlatLayout, got: &[f32], want: &Tensors, zero: &[&str]) -> TestResult {
    let (mut far, mut count) = (0usize, 0usize);
    for slot in layout.slots().iter().filter(|slot| !zero.contains(&slot.name.as_str())) {
        let want = want.get(&slot.name).ok_or_else(|| format!("no {}", slot.name))?.flatten_all()?.to_vec1::<f32>()?;
        let pairs = got[slot.range.clone()].iter().zip(&want);
        far += pairs.filter(|(a, b)| f64::from((*a - *b).abs()) > WEIGHT_TOLERANCE).count();
        count += want.len();
    }
    assert!((far as f64) <= FAR_SHARE * count as f64, "{what}: {far} of {count} weights are off");
    Ok(())
}

fn gradient(
    network: &UNet2DModel,
    parameters: &Parameters,
    objective: &Objective,
    batch: &NoisyBatch,
) -> TestResult<(Tensor, f64, Vec<f32>)> {
    let (loss, output, gradients) = with_gradients(batch.x_t.device(), || {
        let (conditioning, cache) = (Conditioning::default(), Cache::default());
        let output = network.forward(&Call::of_rows(&batch.x_t, &batch.levels, &conditioning, &cache))?;
        Ok::<_, tweedie::Error>((objective.losses(&output, batch)?.mean_all()?, output.detach()))
    })?;
    let mut sums = vec![0.0; parameters.layout().len()];
    parameters.add_gradients(&gradients, &mut sums)?;
    Ok((output, f64::from(loss.to_scalar::<f32>()?), sums))
}

#[test]
fn golden_losses_gradients_and_steps() -> TestResult {
    for (folder, json, root) in folders()? {
        let (network, mut parameters, schedule) = network(&root, &json["model"])?;
        let layout = parameters.layout().clone();
        let stored = load(&folder, "batch")?;
        let process = ForwardProcess::Diffusion(schedule);
        let objective = Objective::new(process.clone(), PredictionType::Epsilon, LossWeighting::Uniform)?;
        let batch = objective.noisy(&stored["x0"], &stored["noise"], &timesteps(&json["timesteps"]))?;
        let off = (&batch.x_t - &stored["xt"])?.abs()?.max_all()?.to_scalar::<f32>()?;
        // Values of size 1, and the reference multiplies its alphas in f32.
        assert!(off < 1e-5, "x_t differs by {off}");

        let zero: Vec<&str> =
            json["zero_gradient_parameters"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let option = |name: &str| json[name].as_f64().ok_or_else(|| format!("no {name}"));
        let (lr, decay) = (option("lr")?, option("ema")?);
        let betas = numbers(&json["betas"]);
        let config = AdamWConfig {
            beta1: betas[0],
            beta2: betas[1],
            epsilon: option("eps")?,
            weight_decay: option("weight_decay")?,
        };
        let mut optimizer = AdamW::new(config, layout.len());
        let mut ema = Ema::new(parameters.values(), decay, false);
        let mut warm = Ema::new(parameters.values(), decay, true);

        for (step, want) in numbers(&json["losses"]).into_iter().enumerate() {
            let (output, loss, mut gradients) = gradient(&network, &parameters, &objective, &batch)?;
            close("loss", loss, want, TOLERANCE);
            if step == 0 {
                check_gradients(&layout, &gradients, &load(&folder, "grads")?, &zero)?;
                check_first_step(&json, &process, &stored, &output, &batch, &gradients)?;
            }
            parameters.update(|weights| optimizer.step(weights, &gradients, lr))?;
            ema.update(parameters.values());
            warm.update(parameters.values());
            let name = format!("weights_after_{}", step + 1);
            if folder.join(format!("{name}.safetensors")).exists() {
                check_weights(&name, &layout, parameters.values(), &load(&folder, &name)?, &zero)?;
            }
            gradients.clear();
        }
        let name = format!("ema_after_{}", json["steps"]);
        if folder.join(format!("{name}.safetensors")).exists() {
            check_weights(&name, &layout, &ema.values, &load(&folder, &name)?, &zero)?;
        }
        check_warm_average(&json, &layout, &warm)?;
    }
    Ok(())
}

/// What the reference computed of the first output and gradient.
fn check_first_step(
    json: &Value,
    process: &ForwardProcess,
    stored: &Tensors,
    output: &Tensor,
    batch: &NoisyBatch,
    gradients: &[f32],
) -> TestResult {
    let off = (output - &stored["pred"])?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(f64::from(off) < TOLERANCE * 4.0, "the output, of size 4, differs by {off}");
    close("gradient norm", global_norm(gradients), json["grad_norm"].as_f64().unwrap_or(0.0), TOLERANCE);
    let gamma = json["gamma"].as_f64().unwrap_or(0.0);
    let losses = |kind, weighting| -> TestResult<Vec<f64>> {
        let objective = Objective::new(process.clone(), kind, weighting)?;
        // The same output, taken for another quantity.
        let batch = objective.noisy(&stored["x0"], &stored["noise"], &timesteps(&json["timesteps"]))?;
        per_image(&objective, output, &batch)
    };
    let min_snr = LossWeighting::MinSnr { gamma };
    let simple = losses(PredictionType::Epsilon, LossWeighting::Uniform)?;
    all_close("losses of images", &simple, &json["per_sample"], TOLERANCE);
    for (name, kind, weighting) in [
        ("min_snr_loss", PredictionType::Epsilon, min_snr),
        ("v_loss", PredictionType::VPrediction, LossWeighting::Uniform),
        ("v_min_snr_loss", PredictionType::VPrediction, min_snr),
        ("x0_loss", PredictionType::Sample, LossWeighting::Uniform),
    ] {
        close(name, mean(&losses(kind, weighting)?), json[name].as_f64().unwrap_or(0.0), TOLERANCE);
    }
    for (name, kind) in
        [("min_snr_weights", PredictionType::Epsilon), ("v_min_snr_weights", PredictionType::VPrediction)]
    {
        let levels = timesteps(&json["timesteps"]).into_iter().map(|t| process.level(t));
        let weights = levels.map(|level| Ok(min_snr.weight(kind, &level?))).collect::<TestResult<Vec<_>>>()?;
        all_close(name, &weights, &json[name], TOLERANCE);
    }
    let clip = &json["clip"];
    let max_norm = clip["max_norm"].as_f64().unwrap_or(0.0);
    let mut clipped = gradients.to_vec();
    close(
        "norm before",
        clip_global_norm(&mut clipped, max_norm),
        clip["norm_before"].as_f64().unwrap_or(0.0),
        TOLERANCE,
    );
    close("norm after", global_norm(&clipped), clip["norm_after"].as_f64().unwrap_or(0.0), TOLERANCE);
    let _ = batch;
    Ok(())
}

/// diffusers' `EMAModel`, of which the reference keeps the norm and a few values.
fn check_warm_average(json: &Value, layout: &FlatLayout, warm: &Ema) -> TestResult {
    let mut before = warm.clone();
    before.updates -= 1;
    close("last decay", before.next_decay(), json["ema_model_decay_last"].as_f64().unwrap_or(0.0), 1e-12);
    close("norm of the average", global_norm(&warm.values), json["ema_model_norm"].as_f64().unwrap_or(0.0), 1e-6);
    let probes = json["ema_model_probe"].as_object().ok_or("no probes")?;
    assert!(!probes.is_empty());
    for (name, want) in probes {
        let slot = layout.slots().iter().find(|slot| slot.name == *name).ok_or_else(|| format!("no {name}"))?;
        for (got, want) in warm.values[slot.range.clone()].iter().zip(numbers(want)) {
            assert!((f64::from(*got) - want).abs() < WEIGHT_TOLERANCE, "{name}: {got} {want}");
        }
    }
    Ok(())
}

/// L_hybrid of Nichol and Dhariwal, from a network that learns the variance.
#[test]
fn golden_hybrid_loss_and_its_gradients() -> TestResult {
    for (folder, json, root) in folders()? {
        let (network, parameters, schedule) = network(&root, &json["learned_model"])?;
        let stored = load(&folder, "learned_variance")?;
        let want = &json["learned_variance"];
        let factor = 0.001 * want["num_timesteps"].as_f64().ok_or("no num_timesteps")?;
        let process = ForwardProcess::Diffusion(schedule);
        let objective =
            Objective::new(process, PredictionType::Epsilon, LossWeighting::Uniform)?.with_learned_variance(0.001)?;
        let batch = objective.noisy(&stored["x0"], &stored["noise"], &timesteps(&json["learned_timesteps"]))?;
        // From the reference's output: the loss alone.
        let losses = per_image(&objective, &stored["model_out"], &batch)?;
        let parts = numbers(&want["mse"]).into_iter().zip(numbers(&want["vb"]));
        for (got, (mse, vb)) in losses.iter().zip(parts) {
            close("hybrid loss of an image", *got, mse + factor * vb, TOLERANCE);
        }
        let (_, loss, gradients) = gradient(&network, &parameters, &objective, &batch)?;
        close("hybrid loss", loss, want["hybrid"].as_f64().unwrap_or(0.0), TOLERANCE);
        // A key's bias moves every score of a query alike, which the softmax does not see.
        let keys: Vec<&str> = (parameters.layout().slots().iter())
            .map(|slot| slot.name.as_str())
            .filter(|name| name.ends_with("to_k.bias"))
            .collect();
        check_gradients(parameters.layout(), &gradients, &load(&folder, "learned_variance_grads")?, &keys)?;
    }
    Ok(())
}
