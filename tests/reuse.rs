//! Calls that take over from calls before.

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tweedie::checkpoints::RandomWeights;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Branch, Cache, Call, Network, Reuse};
use tweedie::images::Photo;
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::{ControlResiduals, UNet2DConditionConfig, UNet2DConditionModel};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::{NoiseLevel, Result};
use tweedie_pipelines::{Fast, LatentDiffusion, TextToImageRequest};

type TestResult<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Layers of the highest resolution on the way down.
const LAYERS: usize = 2;

/// Random weights with zeros for one convolution.
struct Without<'a>(&'a str, RandomWeights);

impl WeightSource for Without<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.1.tensor(name, shape)?;
        if name.starts_with(self.0) { Ok(tensor.zeros_like()?) } else { Ok(tensor) }
    }

    fn contains(&self, name: &str) -> bool {
        self.1.contains(name)
    }

    fn device(&self) -> &Device {
        self.1.device()
    }
}

fn unet(backend: Backend, without: &str) -> Result<UNet2DConditionModel> {
    let json = json!({
        "block_out_channels": [8, 16, 16], "layers_per_block": LAYERS, "norm_num_groups": 4, "cross_attention_dim": 12,
        "attention_head_dim": 2, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    let fields = ConfigFields::from_fields("unet", json.as_object().cloned().unwrap_or_default());
    let source = Without(without, RandomWeights::new(1, DType::F32, &Device::Cpu));
    let weights = Weights::new(&source).with_backend(backend);
    UNet2DConditionModel::new(&weights, UNet2DConditionConfig::from_fields(&fields)?, DType::F32)
}

fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    TorchNoise::shared(seed).normal(shape)
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

const BOTH: &[Branch] = &[Branch::Unprompted, Branch::Prompted];

/// What is kept of a state gives the answer to the same state, to the bit: of all rows, and of the prompted ones alone.
#[test]
fn the_same_state_has_the_same_answer() -> Result<()> {
    for backend in [Backend::Kernels, Backend::Candle] {
        let unet = unet(backend, "nothing")?;
        let (x, text) = (noise(1, &[2, 4, 8, 12])?, Conditioning::text(noise(2, &[2, 7, 12])?));
        let level = NoiseLevel::from_sigma(300.0, 1.0);
        let whole = unet.forward(&Call::new(&x, level, &text, &Cache::default()))?;
        // More layers than there are means all of them.
        for shallow in [0, 1, LAYERS, 100] {
            let cache = Cache::default();
            let call = Call { branches: BOTH, ..Call::new(&x, level, &text, &cache) };
            let ask = |reuse| values(&unet.forward(&Call { reuse, ..call })?);
            for reuse in [Reuse::Take { shallow }, Reuse::Keep { shallow }, Reuse::Take { shallow }, Reuse::Nothing] {
                assert_eq!(ask(reuse)?, values(&whole)?, "{backend:?}, {reuse:?}");
            }
            let (x, text) = (x.narrow(0, 1, 1)?, text.rows(1..2)?);
            let prompted = Call { x: &x, conditioning: &text, branches: &[Branch::Prompted], ..call };
            let prompted = unet.forward(&Call { reuse: Reuse::Take { shallow }, ..prompted })?;
            assert_eq!(values(&prompted)?, values(&whole.narrow(0, 1, 1)?)?, "{backend:?}, {shallow}");
        }
    }
    Ok(())
}

/// Where the deep layers do not see the state, those of another state are as good; else they are others.
#[test]
fn shallow_layers_see_the_new_state() -> Result<()> {
    let texts = Conditioning::text(noise(2, &[1, 7, 12])?);
    let (old, new) = (noise(1, &[1, 4, 8, 8])?, noise(3, &[1, 4, 8, 8])?);
    let level = NoiseLevel::from_sigma(300.0, 1.0);
    for (without, blind) in [("down_blocks.0.downsamplers", true), ("nothing", false)] {
        let (unet, cache) = (unet(Backend::Kernels, without)?, Cache::default());
        let whole = unet.forward(&Call::new(&new, level, &texts, &cache))?;
        let ask = |x, reuse| unet.forward(&Call { reuse, ..Call::new(x, level, &texts, &cache) });
        let before = ask(&old, Reuse::Keep { shallow: LAYERS })?;
        let taken = ask(&new, Reuse::Take { shallow: LAYERS })?;
        assert_eq!(values(&taken)? == values(&whole)?, blind, "{without}");
        assert_ne!(values(&taken)?, values(&before)?);
    }
    Ok(())
}

/// Rows of another number, size or kind are computed.
#[test]
fn what_was_kept_of_other_rows_is_not_taken() -> Result<()> {
    let (unet, cache) = (unet(Backend::Kernels, "nothing")?, Cache::default());
    let level = NoiseLevel::from_sigma(300.0, 1.0);
    let (keep, take) = (Reuse::Keep { shallow: 1 }, Reuse::Take { shallow: 1 });
    let (x, text) = (noise(1, &[1, 4, 8, 8])?, Conditioning::text(noise(2, &[1, 7, 12])?));
    unet.forward(&Call { reuse: keep, ..Call::new(&x, level, &text, &cache) })?;
    for shape in [[2, 4, 8, 8], [1, 4, 8, 16]] {
        let (x, text) = (noise(5, &shape)?, text.repeat(shape[0])?);
        let call = Call::new(&x, level, &text, &cache);
        let whole = unet.forward(&call)?;
        assert_eq!(values(&unet.forward(&Call { reuse: take, ..call })?)?, values(&whole)?, "{shape:?}");
        unet.forward(&Call { reuse: keep, ..Call::new(&noise(1, &[1, 4, 8, 8])?, level, &text.rows(0..1)?, &cache) })?;
    }
    let other = noise(6, &[1, 4, 8, 8])?;
    let call = Call { branches: &[Branch::Unprompted], ..Call::new(&other, level, &text, &cache) };
    let whole = unet.forward(&call)?;
    assert_eq!(values(&unet.forward(&Call { reuse: take, ..call })?)?, values(&whole)?);
    Ok(())
}

/// What controls added is among what is kept.
#[test]
fn what_controls_add_is_kept() -> Result<()> {
    let unet = unet(Backend::Kernels, "nothing")?;
    let (x, text) = (noise(1, &[1, 4, 8, 8])?, Conditioning::text(noise(2, &[1, 7, 12])?));
    let sides = [(8, 8), (8, 8), (8, 8), (8, 4), (16, 4), (16, 4), (16, 2), (16, 2), (16, 2)];
    let map = |seed: usize, (channels, side): (usize, usize)| noise(seed as u64, &[1, channels, side, side]);
    let down = sides.iter().enumerate().map(|(i, &size)| map(i, size)).collect::<Result<_>>()?;
    let of_controlnet = ControlResiduals { down, mid: Some(map(20, (16, 2))?), resolutions: Vec::new() };
    let resolutions = [(8, 8), (16, 4), (16, 2)].into_iter().enumerate().map(|(i, size)| map(30 + i, size));
    let of_adapter = ControlResiduals { resolutions: resolutions.collect::<Result<_>>()?, ..Default::default() };
    for control in [of_controlnet, of_adapter] {
        for shallow in 0..=LAYERS {
            let cache = Cache::default();
            let call = Call::new(&x, NoiseLevel::from_sigma(300.0, 1.0), &text, &cache);
            let whole = unet.forward_controlled(&Call { reuse: Reuse::Keep { shallow }, ..call }, Some(&control))?;
            let taken = unet.forward_controlled(&Call { reuse: Reuse::Take { shallow }, ..call }, None)?;
            assert_eq!(values(&taken)?, values(&whole)?, "{shallow}");
        }
    }
    Ok(())
}

/// A preset changes the picture a little, makes it at any batch size, and is in its record.
#[test]
fn presets_draw_nearly_the_same_picture() -> TestResult {
    let model = LatentDiffusion::builder().build()?;
    let prompt = "a fox on a blue background".into();
    let exact = TextToImageRequest { prompt, steps: Some(30), ..Default::default() };
    let first = model.generate(&exact)?;
    let of = |fast| TextToImageRequest { fast: Some(fast), ..exact.clone() };
    // Of a mean over eight prompts of 43, 38 and 31 dB; that of one is up to 7 dB below.
    for (fast, steps, least) in [(Fast::OneAndAHalf, 30, 36.0), (Fast::Two, 24, 31.0), (Fast::Three, 15, 23.0)] {
        let settings = model.settle(&of(fast))?;
        assert_eq!((settings.steps, settings.asked_steps, settings.warnings.len()), (steps, 30, 0), "{fast:?}");
        let made = model.generate_settled(&settings)?;
        let psnr = decibels(&first.pictures[0], &made.pictures[0]);
        assert!((least..90.0).contains(&psnr), "{fast:?}: {psnr} dB");
        let record = model.record(&settings).json(0);
        assert_eq!((record["steps"].as_u64(), record["fast"].as_str().is_some()), (Some(30), true), "{record}");
        let again: TextToImageRequest = serde_json::from_value(json!({
            "prompt": record["prompt"], "steps": record["steps"], "fast": record["fast"], "num_images": 2, "batch_size": 2,
        }))?;
        let again = model.generate(&again)?;
        assert!(decibels(&again.pictures[0], &made.pictures[0]) > 60.0, "within rounding of a batch of two");
    }
    let few = model.settle(&TextToImageRequest { steps: Some(9), ..of(Fast::Three) })?;
    assert_eq!(few.steps, 9);
    assert!(few.warnings.iter().any(|warning| warning.contains("`fast` has no effect")), "{:?}", few.warnings);
    Ok(())
}

fn decibels(a: &Photo, b: &Photo) -> f64 {
    let (a, b) = (a.to_picture(), b.to_picture());
    let (a, b) = (a.rgb(), b.rgb());
    let square = |(&a, &b): (&u8, &u8)| (f64::from(a) - f64::from(b)).powi(2);
    let mean = a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64;
    10.0 * (255f64.powi(2) / mean.max(1e-12)).log10()
}
