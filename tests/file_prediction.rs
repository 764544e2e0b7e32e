//! What a file with a whole model says of its prediction is what is done.

use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tweedie::checkpoints::{ModelFiles, SingleFile, StoredTensor, TensorFile};
use tweedie::families::{Families, FilePrediction, convert_to_file};
use tweedie::files::Existing;
use tweedie_pipelines::{Model, ModelInfo, PredictionDoubt};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A file of so many zeros as a header says, all of which the disk need not hold.
fn write_file(
    path: &Path,
    tensors: &[(&str, Vec<usize>)],
    metadata: &[(&str, &str)],
    numbers: &[(&str, f32)],
) -> TestResult {
    let mut header = serde_json::Map::new();
    let metadata: HashMap<_, _> = metadata.iter().copied().collect();
    header.insert("__metadata__".into(), json!(metadata));
    let mut values = Vec::new();
    for (name, number) in numbers {
        header.insert(
            (*name).into(),
            json!({"dtype": "F32", "shape": [], "data_offsets": [values.len(), values.len() + 4]}),
        );
        values.extend(number.to_le_bytes());
    }
    let mut end = values.len();
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let data = bytes.len();
    bytes.extend(values);
    std::fs::write(path, bytes)?;
    Ok(std::fs::OpenOptions::new().write(true).open(path)?.set_len((data + end) as u64)?)
}

/// A file of a family, by the width of the text that its UNet looks at.
#[derive(Default)]
struct Case {
    width: usize,
    marks: &'static [&'static str],
    numbers: &'static [(&'static str, f32)],
    metadata: &'static [(&'static str, &'static str)],
    settings: Option<&'static str>,
}

impl Case {
    fn write(&self, folder: &Path) -> TestResult<Model> {
        let path = folder.join("model.safetensors");
        let text = match self.width {
            2048 => ["conditioner.embedders.0.transformer.text_model.a", "conditioner.embedders.1.model.a"],
            _ => ["cond_stage_model.transformer.text_model.a", "cond_stage_model.model.a"],
        };
        let mut tensors = vec![
            ("model.diffusion_model.input_blocks.0.0.weight", vec![320, 4, 3, 3]),
            ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", vec![320, self.width]),
            ("first_stage_model.decoder.conv_in.weight", vec![512, 4, 3, 3]),
            (text[0], vec![1]),
            (text[1], vec![1]),
        ];
        tensors.extend(self.marks.iter().map(|name| (*name, vec![0])));
        write_file(&path, &tensors, self.metadata, self.numbers)?;
        if let Some(settings) = self.settings {
            std::fs::write(path.with_extension("yaml"), settings)?;
        }
        Ok(Model::File { path, config: None })
    }
}

/// The scheduler's class, what is predicted and what is doubted of it.
fn told(case: &Case) -> TestResult<(String, String, Option<PredictionDoubt>)> {
    let folder = tempfile::tempdir()?;
    let info = ModelInfo::read(&case.write(folder.path())?)?;
    Ok((info.scheduler.ok_or("no scheduler")?, info.prediction.ok_or("no prediction")?, info.prediction_doubt))
}

#[test]
fn a_file_has_the_word_on_what_it_predicts() -> TestResult {
    let said = |case: Case| -> TestResult<String> {
        let (_, prediction, doubt) = told(&case)?;
        assert_eq!(doubt, None);
        Ok(prediction)
    };
    for width in [768, 1024, 2048] {
        let words: [(&'static [(&'static str, &'static str)], &str); 6] = [
            (&[("modelspec.prediction_type", "v")], "v_prediction"),
            (&[("modelspec.prediction_type", "v_prediction")], "v_prediction"),
            (&[("modelspec.predict_key", "v")], "v_prediction"),
            (&[("modelspec.prediction_type", "epsilon")], "epsilon"),
            (&[("modelspec.architecture", "stable-diffusion-v2-768-v")], "v_prediction"),
            (&[("modelspec.architecture", "stable-diffusion-v2-512")], "epsilon"),
        ];
        for (metadata, expected) in words {
            assert_eq!(said(Case { width, metadata, ..Case::default() })?, expected, "{width} {metadata:?}");
        }
        assert_eq!(said(Case { width, marks: &["v_pred"], ..Case::default() })?, "v_prediction");
        let settings = Some("model:\n  params:\n    parameterization: \"v\"\n");
        assert_eq!(said(Case { width, settings, ..Case::default() })?, "v_prediction");
        let settings = Some("model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n");
        assert_eq!(said(Case { width, settings, ..Case::default() })?, "epsilon");
    }
    assert_eq!(said(Case { width: 768, ..Case::default() })?, "epsilon");
    assert_eq!(said(Case { width: 2048, ..Case::default() })?, "epsilon");
    let guessed = told(&Case { width: 1024, ..Case::default() })?;
    assert_eq!(guessed.2, Some(PredictionDoubt::Guessed("v_prediction")));
    Ok(())
}

#[test]
fn what_is_said_twice_and_not_alike_is_told() -> TestResult {
    let metadata: &[_] = &[("modelspec.prediction_type", "epsilon")];
    let both = Case { width: 2048, marks: &["v_pred"], metadata, ..Case::default() };
    let strange = Case { width: 768, metadata: &[("modelspec.prediction_type", "flow")], ..Case::default() };
    let settings = Some("parameterization: eps");
    let beside = Case { width: 768, marks: &["v_pred"], settings, ..Case::default() };
    let cases: [(Case, &str, &[&str]); 3] = [
        (
            both,
            "v_prediction",
            &["v_prediction in v_pred", "epsilon in modelspec.prediction_type", "`prediction_type`"],
        ),
        (strange, "epsilon", &["\"flow\" in modelspec.prediction_type", "epsilon is taken"]),
        (beside, "epsilon", &["epsilon in model.yaml", "v_prediction in v_pred"]),
    ];
    for (case, expected, parts) in cases {
        let (_, prediction, doubt) = told(&case)?;
        let Some(PredictionDoubt::Conflict(text)) = doubt else { return Err(format!("{parts:?}: {doubt:?}").into()) };
        assert_eq!(prediction, expected);
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not all in: {text}");
    }
    // Configurations that are given go before the file, and that is told too.
    let folder = tempfile::tempdir()?;
    let case = Case { width: 768, marks: &["v_pred"], ..Case::default() };
    let Model::File { path, .. } = case.write(folder.path())? else { return Err("no file".into()) };
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/sd15");
    let info = ModelInfo::read(&Model::File { path, config: Some(config) })?;
    assert_eq!(info.prediction.as_deref(), Some("epsilon"));
    assert!(
        matches!(info.prediction_doubt, Some(PredictionDoubt::Conflict(text)) if text.contains("its configurations epsilon"))
    );
    Ok(())
}

#[test]
fn a_file_of_edm_brings_its_levels_of_noise() -> TestResult {
    let numbers: &[_] = &[("edm_vpred.sigma_max", 120.0), ("edm_vpred.sigma_min", 0.002)];
    let folder = tempfile::tempdir()?;
    // That somebody says v besides, without a preconditioning, changes nothing.
    let settings = Some("parameterization: v");
    let model = Case { width: 2048, numbers, settings, ..Case::default() }.write(folder.path())?;
    let config = model.files()?.config("scheduler", "scheduler_config.json")?;
    let levels =
        tweedie::schedulers::by_class_name(config.class_name().ok_or("no class")?)?.build(&config)?.levels(10)?;
    let (first, last) = (levels.from(0), levels.from(9));
    assert!((first.sigma - 120.0).abs() < 1e-4 && (last.sigma - 0.002).abs() < 1e-8, "{first:?} {last:?}");
    // Data of unit variance, told as a quarter of the logarithm (Karras et al. 2022, table 1).
    assert_eq!(first.alpha, 1.0);
    assert!((first.timestep - first.sigma.ln() / 4.0).abs() < 1e-12);
    assert_eq!(ModelInfo::read(&model)?.prediction.as_deref(), Some("v_prediction"));

    let numbers: &[_] = &[("edm_vpred.sigma_max", 0.0)];
    let refused = Case { width: 2048, numbers, ..Case::default() }.write(folder.path())?.files().err();
    assert!(refused.is_some_and(|error| error.to_string().contains("edm_vpred.sigma_max 0")));
    Ok(())
}

#[test]
fn zero_terminal_signal_brings_its_timesteps() -> TestResult {
    for width in [768, 2048] {
        let folder = tempfile::tempdir()?;
        let model = Case { width, marks: &["v_pred", "ztsnr"], ..Case::default() }.write(folder.path())?;
        let Model::File { path, .. } = &model else { return Err("no file".into()) };
        let detected = Families::built_in().detect_file(SingleFile::open(path)?.file())?;
        assert_eq!(detected.variant.prediction.kind, FilePrediction::V);
        let config = model.files()?.config("scheduler", "scheduler_config.json")?;
        let scheduler = tweedie::schedulers::by_class_name(config.class_name().ok_or("no class")?)?.build(&config)?;
        let first = scheduler.levels(10)?.from(0);
        // The table ends at 4096 where there is no signal.
        assert!(first.timestep == 999.0 && first.sigma / first.alpha > 4000.0, "{width}: {first:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_written_says_what_it_predicts() -> TestResult {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/sd15");
    let written = |scheduler: Value| -> TestResult<Vec<(String, Option<f64>)>> {
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("model");
        for component in ["unet", "vae", "text_encoder", "tokenizer"] {
            std::fs::create_dir_all(model.join(component))?;
            for entry in std::fs::read_dir(golden.join(component))? {
                let entry = entry?;
                std::fs::copy(entry.path(), model.join(component).join(entry.file_name()))?;
            }
        }
        std::fs::create_dir(model.join("scheduler"))?;
        std::fs::write(model.join("scheduler/scheduler_config.json"), scheduler.to_string())?;
        convert_to_file(&ModelFiles::folder(&model)?, &folder.path().join("x.safetensors"), None, Existing::Stays)?;
        let file = TensorFile::open(&ModelFiles::folder(folder.path())?, "x.safetensors")?;
        let marks =
            file.tensors().into_iter().filter(|tensor| tensor.name.split('.').count() < 3 && tensor.shape.len() < 2);
        let read = |tensor: &StoredTensor| -> TestResult<Option<f64>> {
            match tensor.shape[..] {
                [] => Ok(Some(file.scalar(tensor)?)),
                _ => Ok(None),
            }
        };
        let mut marks =
            marks.map(|tensor| Ok((tensor.name.clone(), read(&tensor)?))).collect::<TestResult<Vec<_>>>()?;
        marks.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(marks)
    };
    let ddim =
        |more: &str| json!({"_class_name": "DDIMScheduler", "prediction_type": more, "rescale_betas_zero_snr": true});
    assert_eq!(written(ddim("v_prediction"))?, [("v_pred".to_owned(), None), ("ztsnr".to_owned(), None)]);
    assert_eq!(written(ddim("epsilon"))?, []);
    let edm = |sigma_data: f64| {
        json!({
            "_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_max": 128.0,
            "sigma_min": 0.0625, "sigma_data": sigma_data,
        })
    };
    let levels = [("edm_vpred.sigma_max".to_owned(), Some(128.0)), ("edm_vpred.sigma_min".to_owned(), Some(0.0625))];
    assert_eq!(written(edm(1.0))?, levels);
    // There is no mark for data of another variance.
    assert_eq!(written(edm(0.5))?, []);
    Ok(())
}
