//! Timing the parts of a model.

use crate::device::{DTypeChoice, DeviceChoice, NumberFormat};
use crate::memory;
use crate::model::{Model, component_parameters};
use crate::requests::fast::Fast;
use crate::settings::check_token_merging;
use candle_core::{IndexOp, Tensor};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::time::Instant;
use tweedie::checkpoints::{ComponentKind, Held, ModelFiles, RandomWeights};
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Branch, Cache, Call, Reuse};
use tweedie::families::{
    AutoencoderArchitecture, Component, ConditioningFacts, DenoisingNetwork, Families, Loader, autoencoder_config,
    text_network,
};
use tweedie::kernels::{InstructionSet, MatmulPrecision, Meter, Pass, measured_peak, threads};
use tweedie::layers::Weights;
use tweedie::models::{Autoencoder, Halves};
use tweedie::text::TextNetwork;
use tweedie::{Device, Error, ErrorKind, NoiseLevel, Result};

/// What to time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BenchModel {
    /// Stable Diffusion 1.5's architecture with seeded random weights.
    Sd15,
    /// The components that a model's folder has.
    Model(Model),
}

/// A benchmark: which model, at which size, how often.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The model.
    pub model: BenchModel,
    /// Side of the pictures in pixels; that of the pictures that the model is made for if it is not given, or 512.
    pub size: Option<usize>,
    /// Batch of the UNet; 2 is one guided image.
    pub batch: usize,
    /// Timed runs of each part, after one that is not; the best counts.
    pub runs: usize,
    /// Where.
    pub device: DeviceChoice,
    /// In which number format.
    pub dtype: DTypeChoice,
    /// Also how much faster the calls of a run with this preset are.
    pub fast: Option<Fast>,
    /// Also time a call with such a share of the tokens merged.
    pub token_merging: Option<f64>,
}

/// Of a batch, of runs and of pixels along a side.
const MOST: usize = 16_384;

const SD15_UNET_PARAMETERS: usize = 859_520_964;

/// The configurations of Stable Diffusion 1.5, as far as its networks follow from them.
const SD15: ModelFiles = ModelFiles::Embedded {
    name: "sd15",
    files: &[
        ("unet/config.json", br#"{"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}"#),
        (
            "vae/config.json",
            br#"{
                "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 512,
                "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
                "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
            }"#,
        ),
        (
            "text_encoder/config.json",
            br#"{
                "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "hidden_act": "quick_gelu", "eos_token_id": 2
            }"#,
        ),
    ],
};

/// The components to time, of those that a model has.
struct Components {
    /// With their folders.
    text_encoders: Vec<(&'static str, Box<dyn TextNetwork>)>,
    network: Option<(Box<dyn DenoisingNetwork>, ConditioningFacts)>,
    /// With the channels of the pictures that it takes.
    vae: Option<(Box<dyn Autoencoder>, usize)>,
}

impl Bench {
    /// Times every component that there is.
    ///
    /// The UNet's inputs are `sin(0.37 i)` and its text `cos(0.11 i)` at timestep 500, so that its output can be
    /// compared with another program's.
    ///
    /// The result has `text_encoder_s`, `text_encoder_2_s`, `unet_s`, `unet_first`, `vae_encode_s`, `vae_decode_s`, `load_s`, and the
    /// conditions; with a preset `unet_reused_s`, a call that takes over from a whole one, and `fast_speedup`, how many times as
    /// fast all calls of a run of 30 steps are; with a share of tokens to merge `unet_merging_tokens_s`; and on the CPU `unet_kernels`
    /// and `vae_decode_kernels`, where the time of one more call goes.
    ///
    /// # Errors
    /// If there is nothing to time, or it cannot be loaded.
    pub fn run(&self) -> Result<Map<String, Value>> {
        within("the batch", self.batch, MOST)?;
        within("the number of runs", self.runs, MOST)?;
        self.size.map_or(Ok(()), |size| within("the size", size, MOST))?;
        check_token_merging(self.token_merging.unwrap_or_default())?;
        let device = self.device.open()?;
        let format = self.dtype.on(&device, None, || match &self.model {
            BenchModel::Sd15 => Ok(SD15_UNET_PARAMETERS),
            BenchModel::Model(model) => {
                let files = model.files()?;
                if files.exists("unet/config.json") { component_parameters(&files, "unet") } else { Ok(0) }
            }
        })?;
        let start = Instant::now();
        let components = self.load(&device, format)?;
        let mut results = Map::new();
        results.insert("model".into(), self.name().into());
        results.insert("device".into(), format!("{:?}", device.location()).to_lowercase().into());
        let weights = match &self.model {
            BenchModel::Model(_) if format.held == Held::AsStored => "as stored",
            _ => format.name(),
        };
        results.insert("weights".into(), weights.into());
        results.insert("products".into(), products_name(format.products).into());
        results.insert("activations".into(), format!("{:?}", format.activations).to_lowercase().into());
        results.insert("threads".into(), threads().into());
        let size = self.size.unwrap_or_else(|| components.side());
        results.insert("size".into(), size.into());
        results.insert("batch".into(), self.batch.into());
        results.insert("runs".into(), self.runs.into());
        results.insert("load_s".into(), rounded(start.elapsed().as_secs_f64()));
        let peak = device.is_cpu().then(|| measured_peak(format.products));
        self.time(&components, size, (&device, peak), &mut results)?;
        Ok(results)
    }

    fn name(&self) -> String {
        match &self.model {
            BenchModel::Sd15 => "sd15, random weights".into(),
            BenchModel::Model(model) => model.name(),
        }
    }

    fn load(&self, device: &Device, format: NumberFormat) -> Result<Components> {
        match &self.model {
            BenchModel::Sd15 => {
                let random = RandomWeights::new(0, format.weights, device);
                Components::load(&Loader { source: Some(&random), ..format.loader(&SD15, device) })
            }
            BenchModel::Model(model) => Components::load(&format.loader(&model.files()?, device)),
        }
    }

    fn time(
        &self,
        components: &Components,
        size: usize,
        (device, peak): (&Device, Option<f64>),
        results: &mut Map<String, Value>,
    ) -> Result<()> {
        if let Some(peak) = peak {
            results.insert("instruction_set".into(), InstructionSet::in_use().name().into());
            results.insert("peak_gflops".into(), json!(peak.round()));
        }
        for (folder, text_encoder) in &components.text_encoders {
            let ids = Tensor::zeros((1, text_encoder.max_length()), candle_core::DType::U32, device)?;
            results.insert(format!("{folder}_s"), self.best(|| text_encoder.states(&ids))?.0);
        }
        let factor = components.factor();
        let side = size / factor;
        if side == 0 || !size.is_multiple_of(factor) {
            return Err(Error::invalid("the size", size, format!("take a multiple of {factor}")));
        }
        if let Some((network, facts)) = &components.network {
            let x = wave(&[self.batch, network.facts().in_channels, side, side], 0.37, f64::sin, device)?;
            let text = wave(&[self.batch, 77, facts.text_width], 0.11, f64::cos, device)?;
            let level = NoiseLevel::from_sigma(500.0, 1.0);
            let (pooled, time_ids) = self.added(facts, size, device)?.unzip();
            let conditioning = Conditioning { pooled, time_ids, ..Conditioning::text(text) };
            let cache = Cache::default();
            let call = || network.forward(&Call::new(&x, level, &conditioning, &cache));
            let (seconds, out) = self.best(call)?;
            if let (Some(fast), Some(whole)) = (self.fast, seconds.as_f64()) {
                let whole_call = Call::new(&x, level, &conditioning, &cache);
                self.time_reuse(network.as_ref(), &whole_call, (fast, whole), results)?;
            }
            results.insert("unet_s".into(), seconds);
            if let Some(token_merging) = self.token_merging {
                let whole = Call::new(&x, level, &conditioning, &cache);
                let merging = || network.forward(&Call { token_merging, ..whole });
                results.insert("unet_merging_tokens_s".into(), self.best(merging)?.0);
            }
            if let Some(peak) = peak {
                results.insert("unet_kernels".into(), kernels(peak, call)?);
            }
            let first = out.flatten_all()?.i(..4)?.to_vec1::<f32>()?;
            results.insert("unet_first".into(), first.into());
        }
        if let Some((vae, in_channels)) = &components.vae {
            let images = wave(&[1, *in_channels, size, size], 0.37, f64::sin, device)?;
            let strips = memory::strips(vae.encoding_memory(size, size), size);
            let encode = || Ok(vae.encode_in_strips(&images, &strips)?.mean);
            results.insert("vae_encode_s".into(), self.best(encode)?.0);
            let latents = wave(&[1, vae.latent_space().channels, side, side], 0.37, f64::sin, device)?;
            let strips = memory::strips(vae.decoding_memory(side, side), size);
            let decode = || vae.decode_in_strips(&latents, &strips, &mut |_, _| ControlFlow::Continue(()));
            results.insert("vae_decode_s".into(), self.best(decode)?.0);
            if let Some(peak) = peak {
                results.insert("vae_decode_kernels".into(), kernels(peak, decode)?);
            }
        }
        Ok(())
    }

    /// Times a call that takes over from `call`, which takes `whole` seconds. Of a batch of two halves, as guidance makes it, such
    /// a call has the second alone.
    fn time_reuse(
        &self,
        network: &dyn DenoisingNetwork,
        call: &Call<'_>,
        (fast, whole): (Fast, f64),
        results: &mut Map<String, Value>,
    ) -> Result<()> {
        let guided = self.batch.is_multiple_of(2);
        let branches: &[Branch] = if guided { &[Branch::Unprompted, Branch::Prompted] } else { call.branches };
        network.forward(&Call { branches, reuse: Reuse::Keep { shallow: Fast::SHALLOW }, ..*call })?;
        let rows = if guided { self.batch / 2..self.batch } else { 0..self.batch };
        let (x, conditioning) = (&call.x.narrow(0, rows.start, rows.len())?, &call.conditioning.rows(rows)?);
        let reuse = Reuse::Take { shallow: Fast::SHALLOW };
        let reused = self.best(|| network.forward(&Call { x, conditioning, reuse, ..*call }))?.0;
        if let Some(seconds) = reused.as_f64() {
            let asked = 30;
            let (kept, taken) = fast.calls(asked)?;
            let speedup = asked as f64 * whole / (kept as f64 * whole + taken as f64 * seconds);
            results.insert("fast_speedup".into(), json!((speedup * 100.0).round() / 100.0));
        }
        results.insert("unet_reused_s".into(), reused);
        Ok(())
    }

    /// What Stable Diffusion XL is conditioned on besides: a pooled text, `cos(0.11 i)`, and the sizes of a picture that was
    /// not cropped; a score of 6 in place of the size that is wanted.
    fn added(&self, facts: &ConditioningFacts, size: usize, device: &Device) -> Result<Option<(Tensor, Tensor)>> {
        let side = size as f32;
        let ids: &[f32] = match facts.picture_numbers {
            0 => return Ok(None),
            5 => &[side, side, 0.0, 0.0, 6.0],
            _ => &[side, side, 0.0, 0.0, side, side],
        };
        let pooled = wave(&[self.batch, facts.pooled_width], 0.11, f64::cos, device)?;
        let ids = Tensor::from_slice(ids, (1, ids.len()), device)?.repeat((self.batch, 1))?;
        Ok(Some((pooled, ids)))
    }

    /// The least seconds of the runs after the first, and a result.
    fn best(&self, run: impl Fn() -> Result<Tensor>) -> Result<(Value, Tensor)> {
        let mut out = run()?;
        out.device().synchronize()?;
        let mut best = f64::INFINITY;
        for _ in 0..self.runs {
            let start = Instant::now();
            out = run()?;
            out.device().synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok((rounded(best), out))
    }
}

/// One more run, in which every kernel is timed: per kind the calls, the seconds, the speed and its share of the machine's
/// `peak`; and what lies between the kernels. Winograd's convolutions may pass the peak, since the direct method's
/// operations are counted.
pub(crate) fn kernels<T>(peak: f64, run: impl FnOnce() -> Result<T>) -> Result<Value> {
    let (meter, start) = (Meter::start(), Instant::now());
    run()?;
    let mut rest = start.elapsed();
    let mut kinds: Vec<_> = meter.read().into_iter().collect();
    kinds.sort_by_key(|&(_, tally)| std::cmp::Reverse(tally.time));
    let mut table = Map::new();
    for ((kind, pass), tally) in kinds {
        let kind = match pass {
            Pass::Forward => kind.into(),
            Pass::Backward => format!("{kind}, backward"),
        };
        rest = rest.saturating_sub(tally.time);
        let seconds = tally.time.as_secs_f64();
        let mut row = json!({"calls": tally.calls, "s": rounded(seconds)});
        if tally.operations > 0 {
            let speed = tally.operations as f64 / seconds / 1e9;
            row["gflops"] = json!((speed * 10.0).round() / 10.0);
            row["of_peak"] = json!((speed / peak * 100.0).round() / 100.0);
        }
        table.insert(kind, row);
    }
    table.insert("between".into(), json!({"s": rounded(rest.as_secs_f64())}));
    Ok(Value::Object(table))
}

/// Whether a number is from 1 to `most`.
pub(crate) fn within(what: &str, value: usize, most: usize) -> Result<()> {
    if value == 0 || value > most {
        return Err(Error::invalid(what, value, format!("take 1 to {most}")));
    }
    Ok(())
}

fn products_name(products: MatmulPrecision) -> &'static str {
    match products {
        MatmulPrecision::Full => "full",
        MatmulPrecision::Bf16 => "bf16",
    }
}

pub(crate) fn rounded(seconds: f64) -> Value {
    json!((seconds * 1e4).round() / 1e4)
}

/// `f(step * i)` for the i-th value, as f32 of an f32 product.
fn wave(shape: &[usize], step: f32, f: impl Fn(f64) -> f64, device: &Device) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| f(f64::from(i as f32 * step)) as f32).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
}

impl Components {
    /// Pixels a side of the latents.
    fn factor(&self) -> usize {
        self.vae.as_ref().map_or(8, |(vae, _)| vae.latent_space().factor)
    }

    /// The side of the pictures that the network is made for.
    fn side(&self) -> usize {
        let side = self.network.as_ref().map(|(network, _)| network.facts().sample_size.0 * self.factor());
        side.filter(|side| (1..=MOST).contains(side)).unwrap_or(512)
    }

    /// Only those that are there, so that a folder of a UNet alone can be timed.
    fn load(loader: &Loader<'_>) -> Result<Self> {
        let (files, families) = (loader.files, Families::built_in());
        let mut components = Self { text_encoders: Vec::new(), network: None, vae: None };
        let known = families.components();
        for &Component { folder, kind, .. } in &known {
            if !files.exists(&format!("{folder}/config.json")) {
                continue;
            }
            match kind {
                ComponentKind::TextEncoder => components.text_encoders.push((folder, text_network(loader, folder)?)),
                ComponentKind::Network => {
                    let architecture = families.detect(files)?.family.architecture(files)?;
                    let build = |weights: &Weights<'_>| architecture.network(weights, loader.activations);
                    components.network = Some((loader.load(folder, &[], build)?.0, architecture.conditioning_facts()));
                }
                ComponentKind::Autoencoder => {
                    let config = autoencoder_config(files, folder)?;
                    components.vae = Some((config.load(loader, folder, Halves::Both)?.0, config.picture_channels()));
                }
            }
        }
        if components.text_encoders.is_empty() && components.network.is_none() && components.vae.is_none() {
            let known: Vec<_> = known.iter().map(|component| component.folder).collect();
            let fix = format!("it has none of the folders {} with a config.json", known.join(", "));
            return Err(Error::unusable(ErrorKind::Model, "the model", files.path("").display(), fix));
        }
        Ok(components)
    }
}
