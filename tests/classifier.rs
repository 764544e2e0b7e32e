//! The classifier: its operations against their definitions, its gradients against differences, its training.

use candle_core::{DType, Device, Tensor, Var};
use std::sync::Arc;
use tweedie::checkpoints::RandomWeights;
use tweedie::config::ConfigFields;
use tweedie::layers::{Backend, ConvGeometry, FeatureMap, Pooling, Weights};
use tweedie::models::{LeNet, LeNetConfig};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::data::{Batches, ImageSet};
use tweedie::training::tasks::{ClassifierTraining, Judgement, cross_entropy, judge_at};
use tweedie::training::{
    AdamWConfig, Decay, EmaOptions, LearningRate, OptimizerOptions, Trainer, TrainerOptions, TrainerState,
};

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|class| class.to_string()).collect()
}

fn random(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    Ok(TorchNoise::shared(seed).normal(shape)?.to_dtype(DType::F64)?)
}

#[test]
fn pooling_takes_the_largest_of_each_square() -> TestResult {
    let x = random(1, &[2, 3, 5, 7])?;
    let values = x.flatten_all()?.to_vec1::<f64>()?;
    for backend in [Backend::Kernels, Backend::Candle] {
        let pooled = FeatureMap::from_nchw(&x, backend)?.pool(Pooling::Max, ConvGeometry::square(2, 2, 0))?;
        assert_eq!(pooled.dims(), (2, 3, 2, 3));
        let pooled = pooled.to_nchw()?.flatten_all()?.to_vec1::<f64>()?;
        for (i, &largest) in pooled.iter().enumerate() {
            let (plane, y, x) = (i / 6, i / 3 % 2, i % 3);
            let square = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let square = square.map(|(down, right)| values[35 * plane + 7 * (2 * y + down) + 2 * x + right]);
            assert_eq!(largest, square.into_iter().fold(f64::NEG_INFINITY, f64::max));
        }
    }
    Ok(())
}

/// A flat background, where all four are equal: the gradient is passed on once, not four times.
#[test]
fn equal_values_share_the_gradient() -> TestResult {
    let x = Var::zeros((1, 1, 4, 4), DType::F64, &Device::Cpu)?;
    let pooled =
        FeatureMap::from_nchw(&x, Backend::Kernels)?.pool(Pooling::Max, ConvGeometry::square(2, 2, 0))?.to_nchw()?;
    let gradients = pooled.sum_all()?.backward()?;
    let gradient = gradients.get(&x).ok_or("no gradient")?.flatten_all()?.to_vec1::<f64>()?;
    assert_eq!(gradient, [0.25; 16]);
    Ok(())
}

#[test]
fn cross_entropy_is_the_mean_of_minus_log_p() -> TestResult {
    let rows = [[1.0f64, -2.0, 0.5], [800.0, 799.0, -900.0]];
    let labels = [2u32, 1];
    let by_hand = rows.iter().zip(labels).map(|(row, label)| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
        largest + sum.ln() - row[label as usize]
    });
    let expected = by_hand.sum::<f64>() / 2.0;
    let loss = cross_entropy(&Tensor::new(&rows, &Device::Cpu)?, &Tensor::new(&labels, &Device::Cpu)?)?;
    assert!((loss.to_scalar::<f64>()? - expected).abs() < 1e-12);
    assert!(cross_entropy(&Tensor::new(&rows, &Device::Cpu)?, &Tensor::new(&[3u32, 0], &Device::Cpu)?).is_err());
    Ok(())
}

/// The gradient of the loss in the picture, which is what guides sampling, against central differences.
#[test]
fn the_gradient_in_the_picture_is_that_of_differences() -> TestResult {
    for (noisy, backend) in [(true, Backend::Kernels), (false, Backend::Kernels), (true, Backend::Candle)] {
        let config =
            LeNetConfig { block_out_channels: [3, 4], hidden_size: 8, ..LeNetConfig::new(2, 12, names(3), noisy) };
        let source = RandomWeights::new(3, DType::F64, &Device::Cpu);
        let network = LeNet::new(config, &Weights::new(&source).with_backend(backend))?;
        let x = Var::from_tensor(&random(4, &[2, 2, 12, 12])?)?;
        let timesteps = Tensor::new(&[7.0f64, 300.0], &Device::Cpu)?;
        let labels = Tensor::new(&[2u32, 0], &Device::Cpu)?;
        let loss = || cross_entropy(&network.forward(&x, &timesteps)?, &labels);
        let gradients = loss()?.backward()?;
        let gradient = gradients.get(&x).ok_or("no gradient")?.flatten_all()?.to_vec1::<f64>()?;
        let start = x.as_tensor().copy()?.flatten_all()?.to_vec1::<f64>()?;
        let largest = gradient.iter().fold(0.0f64, |largest, g| largest.max(g.abs()));
        for i in (0..start.len()).step_by(37) {
            let at = |offset: f64| -> tweedie::Result<f64> {
                let mut values = start.clone();
                values[i] += offset;
                x.set(&Tensor::from_vec(values, x.dims(), &Device::Cpu)?)?;
                Ok(loss()?.to_scalar::<f64>()?)
            };
            let step = 1e-6;
            let difference = (at(step)? - at(-step)?) / (2.0 * step);
            at(0.0)?;
            // Rounding of the loss over the step, 1e-16 / 1e-6; nothing is curved but the softmax.
            assert!((difference - gradient[i]).abs() < 1e-7 * largest.max(1e-2), "{i}: {difference} {}", gradient[i]);
        }
    }
    Ok(())
}

#[test]
fn the_configuration_comes_back_and_is_checked() -> TestResult {
    for noisy in [false, true] {
        let config = LeNetConfig::new(3, 32, names(7), noisy);
        assert_eq!(LeNetConfig::from_fields(&ConfigFields::from_fields("classifier", config.fields()))?, config);
    }
    let good = ConfigFields::from_fields("classifier", LeNetConfig::new(1, 28, names(10), false).fields());
    for (field, value) in [
        ("sample_size", serde_json::json!(3)),
        ("sample_size", serde_json::json!(100_000)),
        ("block_out_channels", serde_json::json!([1, 2, 3])),
        ("hidden_size", serde_json::json!(0)),
        ("class_names", serde_json::json!(["a"])),
        ("class_names", serde_json::json!([1, 2])),
        ("time_embedding", serde_json::json!(0)),
        ("dropout", serde_json::json!(0.5)),
        ("_class_name", serde_json::json!("ResNet")),
    ] {
        let message = LeNetConfig::from_fields(&good.clone().with(field, value)).err().ok_or(field)?.to_string();
        assert!(message.contains(field), "{field}: {message}");
    }
    Ok(())
}

#[test]
fn a_judgement_counts() -> TestResult {
    let mut judgement = Judgement::new(3);
    let logits = Tensor::new(&[[0f32, 1.0, 0.0], [3.0, 1.0, 2.0], [0.0, 0.0, 1.0]], &Device::Cpu)?;
    judgement.add(&logits, &[1, 2, 2])?;
    assert_eq!(judgement.confusion, [[0, 0, 0], [0, 1, 0], [1, 0, 1]]);
    assert_eq!((judgement.correct(), judgement.total()), (2, 3));
    assert!(judgement.add(&logits, &[1, 2]).is_err() && judgement.add(&logits, &[1, 2, 3]).is_err());
    Ok(())
}

/// Pictures of a bright bar at one of three heights, at random brightness.
fn bars(count: usize) -> BarsResult {
    let pixels = (0..count).flat_map(|i| {
        (0..144).map(move |at| if at / 12 / 4 == i % 3 { 120 + (i * 53 % 130) as u8 } else { (at * i % 60) as u8 })
    });
    let set = ImageSet::new([1, 12, 12], pixels.collect())?;
    Ok(Arc::new(set.with_labels((0..count as u32).map(|i| i % 3).collect(), names(3))?))
}

type BarsResult = Result<Arc<ImageSet>, Box<dyn std::error::Error>>;

/// It learns what can be told, with noise and without; the same seed gives the same bits; pure noise stays a guess.
#[test]
fn it_learns_and_repeats() -> TestResult {
    let set = bars(96)?;
    let options = OptimizerOptions {
        learning_rate: LearningRate { peak: 3e-3, warmup_steps: 10, total_steps: 150, decay: Decay::Cosine },
        adamw: AdamWConfig::default(),
        max_gradient_norm: None,
        ema: Some(EmaOptions { decay: 0.95, warm_up: true }),
    };
    // 1000 betas that grow evenly from 0.0001 to 0.02 are what it has where nothing is said.
    for scheduler in [None, Some(serde_json::Map::new())] {
        let train = || -> tweedie::Result<(LeNet, TrainerState)> {
            let config = LeNetConfig::new(1, 12, names(3), scheduler.is_some());
            let (task, parameters) = ClassifierTraining::new(config, scheduler.clone(), 1, options)?;
            let mut trainer = Trainer::new(task, vec![parameters], TrainerOptions { seed: 1, accumulate: 1 })?;
            let mut batches = Batches::new(set.clone(), 16, 2)?;
            for n in 0..150 {
                trainer.step(|| batches.get(n))?;
            }
            Ok((trainer.task().average(&trainer.sets()[0])?, trainer.state()))
        };
        let (network, state) = train()?;
        let accuracy = |noise| judge_at(&network, &set, noise, 9).map(|judgement| judgement.accuracy());
        match &scheduler {
            None => assert!(accuracy(None)? > 0.98),
            Some(fields) => {
                let schedule = NoiseSchedule::from_config(&ConfigFields::from_fields("scheduler", fields.clone()))?;
                assert!(accuracy(Some((&schedule, 50)))? > 0.95, "{}", accuracy(Some((&schedule, 50)))?);
                // At the last timestep there is no picture: a third, give or take five standard deviations.
                assert!((accuracy(Some((&schedule, 999)))? - 1.0 / 3.0).abs() < 0.25);
            }
        }
        assert_eq!(state, train()?.1);
    }
    Ok(())
}
