//! Self-attention of merged tokens in a whole network. What it computes is held to tomesd by golden cases (`merged-*`).

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tweedie::checkpoints::RandomWeights;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network};
use tweedie::layers::{Backend, Weights};
use tweedie::models::{UNet2DConditionConfig, UNet2DConditionModel};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::{NoiseLevel, Result};
use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};

type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

fn unet(backend: Backend, highest: &str) -> Result<UNet2DConditionModel> {
    let (down, up) = (format!("{highest}DownBlock2D"), format!("{highest}UpBlock2D"));
    let json = json!({
        "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12,
        "attention_head_dim": 2, "in_channels": 4, "out_channels": 4,
        "down_block_types": [down, "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", up],
    });
    let fields = ConfigFields::from_fields("unet", json.as_object().cloned().unwrap_or_default());
    let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
    let weights = Weights::new(&source).with_backend(backend);
    UNet2DConditionModel::new(&weights, UNet2DConditionConfig::from_fields(&fields)?, DType::F32)
}

fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    TorchNoise::shared(seed).normal(shape)
}

fn answer(unet: &UNet2DConditionModel, x: &Tensor, text: &Tensor, token_merging: f64) -> Result<Tensor> {
    let (conditioning, cache) = (Conditioning::text(text.clone()), Cache::default());
    unet.forward(&Call { token_merging, ..Call::new(x, NoiseLevel::from_sigma(300.0, 1.0), &conditioning, &cache) })
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

/// Tokens are merged wherever attention is highest, by kernels as by candle's operations, and each row of a batch by itself.
#[test]
fn rows_merge_their_own_tokens() -> TestResult {
    let (x, text) = (noise(1, &[2, 4, 8, 12])?, noise(2, &[2, 7, 12])?);
    for highest in ["CrossAttn", ""] {
        let kernels = unet(Backend::Kernels, highest)?;
        let (none, half) = (answer(&kernels, &x, &text, 0.0)?, answer(&kernels, &x, &text, 0.5)?);
        assert_ne!(values(&none)?, values(&half)?);
        for row in 0..2 {
            let alone = answer(&kernels, &x.narrow(0, row, 1)?, &text.narrow(0, row, 1)?, 0.5)?;
            assert_eq!(values(&alone)?, values(&half.narrow(0, row, 1)?)?);
        }
        let candle = answer(&unet(Backend::Candle, highest)?, &x, &text, 0.5)?;
        let worst = (candle - half)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(worst < 1e-4, "{worst}: two orders of the same sums, of numbers of size 1");
    }
    Ok(())
}

/// The more is merged, the less the picture is the exact one; it is in the record, and a share beyond that of the method is refused.
#[test]
fn pictures_are_near_those_of_all_tokens() -> TestResult {
    let model = LatentDiffusion::builder().build()?;
    let request = |token_merging| TextToImageRequest {
        prompt: "a fox on a blue background".into(),
        steps: Some(8),
        token_merging,
        ..Default::default()
    };
    let draw =
        |share| -> Result<Vec<u8>> { Ok(model.generate(&request(share))?.pictures[0].to_picture().rgb().to_vec()) };
    let exact = draw(0.0)?;
    let distance = |share| -> Result<f64> {
        let squares = exact.iter().zip(draw(share)?).map(|(&a, b)| (f64::from(a) - f64::from(b)).powi(2));
        Ok((squares.sum::<f64>() / exact.len() as f64).sqrt())
    };
    let (little, much) = (distance(0.1)?, distance(0.75)?);
    assert!(0.0 < little && little < much && much < 60.0, "{little} {much} of 255");
    let record = model.record(&model.settle(&request(0.5))?).json(0);
    assert_eq!(record["token_merging"], 0.5);
    let refused = model.settle(&request(0.8)).err().ok_or("taken")?.to_string();
    assert!(refused.contains("0 to 0.75"), "{refused}");
    Ok(())
}
