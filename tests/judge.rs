//! The judge: its gradients against differences, its slots, its losses, its configuration.

use candle_core::{DType, Device, Tensor, Var};
use serde_json::{Value, json};
use tweedie::checkpoints::RandomWeights;
use tweedie::config::ConfigFields;
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::judge::{Judge, JudgeClasses, JudgeConfig, JudgeHead};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::training::data::JudgeBatch;
use tweedie::training::tasks::{JudgeTraining, cross_entropy, cross_entropy_of_labelled};
use tweedie::training::{AdamWConfig, Decay, Draws, LearningRate, OptimizerOptions, ParameterSource, TrainingTask};

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn names(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn config() -> JudgeConfig {
    let classes = JudgeClasses {
        concepts: names("a b c"),
        background: names("red green"),
        style: names("flat round"),
        position: names("middle left"),
        size: names("normal small"),
        relation: names("none above beside"),
    };
    JudgeConfig { sample_size: 8, block_out_channels: vec![8, 8, 16], summary_size: 6, classes, accuracy: Value::Null }
}

fn random(seed: u64, shape: &[usize]) -> tweedie::Result<Tensor> {
    Ok(TorchNoise::shared(seed).normal(shape)?.to_dtype(DType::F64)?)
}

fn judge(backend: Backend) -> tweedie::Result<Judge> {
    let source = RandomWeights::new(3, DType::F64, &Device::Cpu);
    Judge::new(config(), &Weights::new(&source).with_backend(backend))
}

fn values(x: &Tensor) -> tweedie::Result<Vec<f64>> {
    Ok(x.flatten_all()?.to_vec1::<f64>()?)
}

/// Both ways to compute agree, and the gradient of all losses in the picture is that of central differences.
#[test]
fn the_gradient_is_that_of_differences() -> TestResult {
    let x = Var::from_tensor(&random(4, &[2, 3, 8, 8])?)?;
    let labels = [
        [Some(1), Some(3), None, Some(0), Some(1), Some(0), Some(2)],
        [Some(0), Some(2), Some(1), None, None, Some(1), None],
    ];
    let (kernels, candle) = (judge(Backend::Kernels)?, judge(Backend::Candle)?);
    for (logits, same) in kernels.forward(&x)?.iter().zip(candle.forward(&x)?) {
        let differences = values(&(logits - same)?)?;
        assert!(differences.iter().all(|difference| difference.abs() < 1e-10), "{differences:?}");
    }
    for judge in [kernels, candle] {
        let loss = || -> tweedie::Result<Tensor> {
            let losses = judge
                .forward(&x)?
                .iter()
                .enumerate()
                .map(|(head, logits)| cross_entropy_of_labelled(logits, &labels.map(|labels| labels[head])))
                .collect::<tweedie::Result<Vec<_>>>()?;
            Ok(Tensor::stack(&losses, 0)?.sum_all()?)
        };
        let gradients = loss()?.backward()?;
        let gradient = values(gradients.get(&x).ok_or("no gradient")?)?;
        let start = values(&x.as_tensor().copy()?)?;
        let largest = gradient.iter().fold(0.0f64, |largest, g| largest.max(g.abs()));
        assert!(largest > 1e-6);
        for i in (0..start.len()).step_by(29) {
            let at = |offset: f64| -> tweedie::Result<f64> {
                let mut moved = start.clone();
                moved[i] += offset;
                x.set(&Tensor::from_vec(moved, x.dims(), &Device::Cpu)?)?;
                Ok(loss()?.to_scalar::<f64>()?)
            };
            let step = 1e-5;
            let difference = (at(step)? - at(-step)?) / (2.0 * step);
            at(0.0)?;
            // The third derivative is left over, and rounding over the step.
            assert!((difference - gradient[i]).abs() < 1e-5 * largest, "{i}: {difference} {}", gradient[i]);
        }
    }
    Ok(())
}

/// Each picture's answer is its own, whatever else is in the batch; heads have as many classes as they tell apart.
#[test]
fn pictures_do_not_see_each_other() -> TestResult {
    let judge = judge(Backend::Kernels)?;
    let x = random(5, &[3, 3, 8, 8])?;
    let together = judge.forward(&x)?;
    for (head, logits) in JudgeHead::ALL.iter().zip(&together) {
        assert_eq!(logits.dims(), [3, config().classes.count(*head)]);
    }
    for (i, seen) in judge.seen(&x)?.into_iter().enumerate() {
        let alone = judge.forward(&x.narrow(0, i, 1)?)?;
        for (head, (one, all)) in alone.iter().zip(&together).enumerate() {
            let (one, all) = (values(one)?, values(&all.narrow(0, i, 1)?)?);
            assert!(one.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-10));
            let best = (0..one.len()).max_by(|&a, &b| one[a].total_cmp(&one[b])).ok_or("no class")?;
            assert_eq!(seen[head], best as u32);
        }
    }
    assert!(judge.forward(&random(6, &[1, 3, 16, 16])?).is_err_and(|e| e.to_string().contains("3x8x8")));
    Ok(())
}

/// With a label for each it is the plain mean; without some, the mean over the others; without any, nothing and no gradient.
#[test]
fn pictures_without_a_label_do_not_count() -> TestResult {
    let logits = Var::from_tensor(&random(7, &[4, 3])?)?;
    let of = |rows: &[u32], labels: &[u32]| -> tweedie::Result<f64> {
        let rows = logits.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
        Ok(cross_entropy(&rows, &Tensor::new(labels, &Device::Cpu)?)?.to_scalar()?)
    };
    let some = |labels: [Option<u32>; 4]| cross_entropy_of_labelled(&logits, &labels);
    let loss = |labels| Ok::<f64, Box<dyn std::error::Error>>(some(labels)?.to_scalar()?);
    let all = loss([Some(0), Some(2), Some(1), Some(2)])?;
    assert!((all - of(&[0, 1, 2, 3], &[0, 2, 1, 2])?).abs() < 1e-7);
    let two = loss([None, Some(2), None, Some(0)])?;
    assert!((two - of(&[1, 3], &[2, 0])?).abs() < 1e-7);
    let gradients = some([None; 4])?.backward()?;
    assert_eq!(loss([None; 4])?, 0.0);
    assert!(values(gradients.get(&logits).ok_or("no gradient")?)?.iter().all(|&g| g == 0.0));
    assert!(some([Some(3), None, None, None]).is_err());
    Ok(())
}

/// What is said of concepts is the sum of their looks, and of styles too, where a second concept counts as far as there is one: in
/// closed form.
#[test]
fn concepts_and_styles_are_sums_of_looks() -> TestResult {
    let x = random(8, &[2, 3, 8, 8])?;
    // Whatever is seen, all looks of the first style alike, and likelier than those of the other.
    let bias = Tensor::new(&[40.0, 0.0, 40.0, 0.0, 40.0, 0.0f64], &Device::Cpu)?;
    let weight = Tensor::zeros((6, 24), DType::F64, &Device::Cpu)?;
    // ln(e^40 + e^0) of each concept; that there is a second one is certain, or as likely as not, or as good as impossible.
    let concept = (40f64.exp() + 1.0).ln();
    for (alone, there) in [(-60.0, 1.0), (concept + 3f64.ln(), 0.5), (140.0, 0.0)] {
        let alone_weight = Tensor::zeros((1, 24 + 6), DType::F64, &Device::Cpu)?;
        let given = [
            ("looks.bias", bias.clone()),
            ("looks.weight", weight.clone()),
            ("alone.bias", Tensor::new(&[alone], &Device::Cpu)?),
            ("alone.weight", alone_weight),
        ];
        let source = Replaced { random: RandomWeights::new(3, DType::F64, &Device::Cpu), given: given.into() };
        let said = Judge::new(config(), &Weights::new(&source))?.forward(&x)?;
        let [first, second] = [JudgeHead::First, JudgeHead::Second].map(|head| &said[head as usize]);
        assert!(values(first)?.iter().all(|logit| (logit - concept).abs() < 1e-12));
        assert!(values(&second.narrow(1, 0, 3)?)?.iter().all(|logit| (logit - concept).abs() < 1e-12));
        for style in values(&said[JudgeHead::Style as usize])?.chunks(2) {
            // Three looks of each style, of the first slot and of the second as far as there is one.
            let want = [40.0 + 3f64.ln(), 3f64.ln()].map(|logit| (1.0 + there) * logit);
            assert!(style.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{alone}: {style:?}");
        }
    }
    Ok(())
}

/// The looks of a slot, summed over styles, are its concepts, and that there is nothing stands beside them.
#[test]
fn looks_are_what_concepts_are_summed_from() -> TestResult {
    let judge = judge(Backend::Kernels)?;
    let (said, looks) = judge.forward_with_looks(&random(9, &[2, 3, 8, 8])?)?;
    let classes = config().classes;
    for (slot, looks) in looks.iter().enumerate() {
        let concepts = said[slot].to_vec2::<f64>()?;
        for (looks, concepts) in looks.to_vec2::<f64>()?.iter().zip(concepts) {
            let sum =
                |concept: u32| (0..2).map(|style| looks[classes.look(concept, style) as usize].exp()).sum::<f64>();
            for (concept, logit) in concepts[..3].iter().enumerate() {
                assert!((sum(concept as u32).ln() - logit).abs() < 1e-12);
            }
            assert_eq!((looks.len(), looks.get(6)), (6 + slot, concepts.get(3)));
        }
    }
    Ok(())
}

/// Where all is known, the loss is that of the looks and of what concerns the whole picture, and its gradient is theirs: styles that
/// are read off the wrong concept are not right.
#[test]
fn a_look_is_learned_as_one() -> TestResult {
    let optimizer = OptimizerOptions {
        learning_rate: LearningRate { peak: 1e-3, warmup_steps: 0, total_steps: 1, decay: Decay::Constant },
        adamw: AdamWConfig::default(),
        max_gradient_norm: None,
        ema: None,
    };
    let (mut task, _sets) = JudgeTraining::new(config(), None, 5, optimizer)?;
    let images = random(10, &[2, 3, 8, 8])?.to_dtype(DType::F32)?;
    let labels = vec![
        [Some(1), Some(3), Some(0), Some(0), Some(1), Some(0), Some(0)],
        [Some(0), Some(2), Some(1), Some(1), None, Some(1), Some(2)],
    ];
    let loss = task.loss(0, &JudgeBatch { images: images.clone(), labels }, Draws::new(5, 0))?.to_scalar::<f32>()?;
    let source = ParameterSource::random(5, &Device::Cpu).with_zeros(|name| name.contains(".conv2."));
    let (said, looks) = Judge::new(config(), &Weights::new(&source))?.forward_with_looks(&images)?;
    let of = |logits: &Tensor, classes: [usize; 2]| -> tweedie::Result<f32> {
        let rows = logits.to_vec2::<f32>()?;
        let surprise = |(row, class): (&Vec<f32>, usize)| row.iter().map(|v| v.exp()).sum::<f32>().ln() - row[class];
        Ok(rows.iter().zip(classes).map(surprise).sum::<f32>() / 2.0)
    };
    // Three concepts in two styles; nothing is the seventh of the second slot. The position of two is not said.
    let mut want = of(&looks[0], [2, 1])? + of(&looks[1], [6, 5])?;
    for (head, classes) in [(2, [0, 1]), (5, [0, 1]), (6, [0, 2])] {
        want += of(&said[head], classes)?;
    }
    let position = said[4].to_vec2::<f32>()?;
    want += (position[0][0].exp() + position[0][1].exp()).ln() - position[0][1];
    // Sums of a few logarithms in f32.
    assert!((loss - want).abs() < 1e-5 * want, "{loss} {want}");
    Ok(())
}

/// Random weights, some of which are given.
struct Replaced {
    random: RandomWeights,
    given: Vec<(&'static str, Tensor)>,
}

impl WeightSource for Replaced {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        match self.given.iter().find(|(given, _)| *given == name) {
            Some((_, tensor)) => Ok(tensor.clone()),
            None => self.random.tensor(name, shape),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.random.contains(name)
    }

    fn device(&self) -> &Device {
        self.random.device()
    }
}

#[test]
fn the_configuration_comes_back_and_is_checked() -> TestResult {
    let config = JudgeConfig { accuracy: json!({"raw": {"pictures": 3}}), ..config() };
    let good = ConfigFields::from_fields("judge", config.fields());
    assert_eq!(JudgeConfig::from_fields(&good)?, config);
    for (field, value) in [
        ("sample_size", json!(10)),
        ("sample_size", json!(4096)),
        ("block_out_channels", json!([8, 16])),
        ("block_out_channels", json!([8, 12, 16])),
        ("summary_size", json!(0)),
        ("concepts", json!([])),
        ("concepts", json!(["a", "a"])),
        ("style", json!("flat")),
        ("relation", json!([1])),
        ("dropout", json!(0.5)),
        ("_class_name", json!("LeNet")),
    ] {
        let message = JudgeConfig::from_fields(&good.clone().with(field, value)).err().ok_or(field)?.to_string();
        assert!(message.contains(field), "{field}: {message}");
    }
    Ok(())
}
