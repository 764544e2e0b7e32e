//! Models are shared by runs, which know nothing of each other.

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use tweedie::checkpoints::RandomWeights;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Branch, Cache, Call, ClassifierFreeGuidance, Denoiser, Network};
use tweedie::kernels::{Meter, Pass};
use tweedie::layers::Weights;
use tweedie::models::{
    Autoencoder, ClipTextModel, ControlModel, UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel,
};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, by_name, sample};
use tweedie::{NoiseLevel, Result};

/// The meter counts the kernels of the whole process, so tests run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const STEPS: usize = 6;

fn fields(component: &'static str, json: serde_json::Value) -> ConfigFields {
    ConfigFields::from_fields(component, json.as_object().cloned().unwrap_or_default())
}

fn unet() -> Result<UNet2DConditionModel> {
    let config = UNet2DConditionConfig::from_fields(&fields(
        "unet",
        json!({
            "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12,
            "attention_head_dim": 2, "in_channels": 4, "out_channels": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        }),
    ))?;
    let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
    UNet2DConditionModel::new(&Weights::new(&source), config, DType::F32)
}

fn text(seed: u64) -> Result<Conditioning> {
    Ok(Conditioning::text(TorchNoise::shared(seed).normal(&[1, 7, 12])?))
}

/// A guided run of a text, each from its own seed.
fn run(unet: &UNet2DConditionModel, seed: u64) -> Result<Vec<f32>> {
    let (positive, negative) = (text(seed)?, text(1000)?);
    let scheduler = by_name("ddim")?.build(&fields("scheduler", json!({"clip_sample": false})))?;
    let levels = scheduler.levels(STEPS)?;
    let guided = ClassifierFreeGuidance::new(unet, &negative, 3.0, 0.0);
    let denoiser = Denoiser::new(&guided, &positive, scheduler.parameterization());
    let mut noise = TorchNoise::shared(seed);
    let x = noise.normal(&[1, 4, 8, 8])?;
    let run = Run::new(&levels, &denoiser, &mut noise);
    let x = sample(scheduler.solver().as_mut(), x, 0, run, &mut |_| ControlFlow::Continue(()))?;
    Ok(x.flatten_all()?.to_vec1()?)
}

#[test]
fn models_are_shared_between_threads() {
    fn shared<T: Send + Sync + ?Sized>() {}
    shared::<UNet2DConditionModel>();
    shared::<UNet2DModel>();
    shared::<dyn Autoencoder>();
    shared::<ClipTextModel>();
    shared::<ControlModel>();
    shared::<Box<dyn Network + Send + Sync>>();
    shared::<Cache>();
}

#[test]
fn runs_at_the_same_time_are_what_each_is_alone() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let unet = &unet()?;
    let alone = (0..4).map(|seed| run(unet, seed)).collect::<Result<Vec<_>>>()?;
    let together: Vec<Result<Vec<f32>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || run(unet, seed))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    assert_eq!(together.into_iter().collect::<Result<Vec<_>>>()?, alone);
    assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
    Ok(())
}

/// The work of each call, in products: the first of a run makes keys and values of the text, the others find them, and the
/// next run finds nothing, though its text is the same tensor.
#[test]
fn what_a_run_keeps_ends_with_it() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let unet = unet()?;
    // A text in another type than the network's is converted, in every run once.
    for dtype in [DType::F32, DType::F64] {
        let text = Conditioning::text(TorchNoise::shared(1).normal(&[1, 7, 12])?.to_dtype(dtype)?);
        let x = TorchNoise::shared(2).normal(&[1, 4, 8, 8])?;
        let level = NoiseLevel::from_sigma(500.0, 1.0);
        let work = |cache: &Cache| -> Result<u64> {
            let meter = Meter::start();
            unet.forward(&Call::new(&x, level, &text, cache))?;
            let tallies = meter.read();
            Ok(tallies.iter().filter(|((_, pass), _)| *pass == Pass::Forward).map(|(_, tally)| tally.operations).sum())
        };
        let (first, second) = (Cache::default(), Cache::default());
        let whole = work(&first)?;
        let kept = work(&first)?;
        assert!(kept < whole, "{dtype:?}: {kept} of {whole}");
        assert_eq!(
            [work(&first)?, work(&second)?, work(&second)?, work(&first)?],
            [kept, whole, kept, kept],
            "{dtype:?}"
        );
    }
    Ok(())
}

/// A network without a text has nothing to perturb, and says so rather than answer as if it had.
#[test]
fn networks_that_cannot_be_perturbed_refuse() -> Result<()> {
    let config = json!({"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8,
        "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"], "attention_head_dim": 8});
    let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
    let unet =
        UNet2DModel::new(&Weights::new(&source), UNet2DConfig::from_fields(&fields("unet", config))?, DType::F32)?;
    let x = Tensor::zeros((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
    let (conditioning, cache) = (Conditioning::default(), Cache::default());
    let call = Call::new(&x, NoiseLevel::from_sigma(10.0, 1.0), &conditioning, &cache);
    assert_eq!(unet.forward(&call)?.dims(), x.dims());
    let perturbed = unet.forward(&Call { branches: &[Branch::Perturbed, Branch::Prompted], ..call });
    assert!(perturbed.is_err_and(|error| error.to_string().contains("perturbed")));
    Ok(())
}
