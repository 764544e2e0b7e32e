//! Textual inversion: its loss and gradients, where embeddings start, and what their file does to the model.

mod cases;
mod frozen;

use candle_core::{DType, Device, Tensor};
use cases::TestResult;
use frozen::{
    SEED, batch, check_agreement, check_gradients, load, loss_and_gradients, loss_of, model_folder, objective,
    optimizer, ways_to_hold,
};
use std::path::Path;
use tweedie::adapters::TextualInversion;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::families::{Family, Loader, SD1};
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::{ClipTextConfig, ClipTextModel};
use tweedie::text::Tokenizer;
use tweedie::training::tasks::{EmbeddingTraining, EmbeddingTrainingConfig, FrozenModel, HeldWeights, SamplePrompts};
use tweedie::training::{NewToken, Trainer, TrainerOptions, TrainingTask};

const TOKEN: &str = "<fox>";
const CAPTIONS: [&str; 3] = ["a <fox>", "one <fox> on a branch", "the <fox> in a storm with another <Fox>"];

fn config(model: &FrozenModel, vectors: usize, init_word: Option<&str>) -> TestResult<EmbeddingTrainingConfig> {
    Ok(EmbeddingTrainingConfig {
        token: NewToken { token: TOKEN.into(), vectors, init_word: init_word.map(str::to_owned) },
        objective: objective(model.scheduler())?,
        captions: CAPTIONS.map(str::to_owned).into(),
        size: (64, 64),
        samples: SamplePrompts { prompts: vec!["a <fox>".into()], guidance_scale: 3.0, steps: 2 },
        dtype: DType::F32,
    })
}

fn trainer(model: FrozenModel, vectors: usize, init_word: Option<&str>) -> TestResult<Trainer<EmbeddingTraining>> {
    let config = config(&model, vectors, init_word)?;
    let (task, sets) = EmbeddingTraining::new(config, model, SEED, optimizer(1e-2))?;
    Ok(Trainer::new(task, sets, TrainerOptions { seed: SEED, accumulate: 1 })?)
}

/// The derivative along the gradient is its norm, for the embeddings of each text encoder, over weights that are held in several
/// ways; the two backends agree on every value.
#[test]
fn gradients_are_differences_of_the_loss() -> TestResult {
    for (name, widths) in [("sd15", 1), ("xl-small", 2)] {
        let mut by_kernels = Vec::new();
        for held in ways_to_hold() {
            let mut trainer = trainer(load(name, held)?, 3, None)?;
            let gradients = check_gradients(&mut trainer, &format!("{name} {held:?}"))?;
            assert_eq!(gradients.len(), widths);
            match held.backend {
                Backend::Kernels if held.dtype == DType::F32 => by_kernels = gradients,
                Backend::Kernels => {}
                Backend::Candle => check_agreement(&by_kernels, &gradients, name),
            }
        }
    }
    Ok(())
}

/// The embeddings of the small model's tokens, as its checkpoint has them.
fn table(files: &ModelFiles) -> TestResult<Tensor> {
    let config = ClipTextConfig::from_fields(&files.config("text_encoder", "config.json")?)?;
    let checkpoint = Checkpoint::open(files, "text_encoder", Precision::Full, DType::F32, &Device::Cpu)?;
    let shape = [config.vocab_size, config.hidden_size];
    Ok(checkpoint.tensor("text_model.embeddings.token_embedding.weight", &shape)?)
}

/// Embeddings start as the rows of a word's tokens, over and over, or near the mean of all, each elsewhere, and anywhere else with
/// another seed.
#[test]
fn embeddings_start_where_they_should() -> TestResult {
    let files = ModelFiles::folder(&model_folder("sd15"))?;
    let (table, tokenizer) = (table(&files)?, Tokenizer::from_files(&files, "tokenizer")?);
    let word = "lighthouses";
    let ids = tokenizer.encode_text(word)?;
    assert!(ids.len() > 1, "{ids:?}");
    let vectors = 2 * ids.len() + 1;
    let started = |word, seed| -> TestResult<Vec<Vec<f32>>> {
        let model = load("sd15", HeldWeights::default())?;
        let (_, sets) = EmbeddingTraining::new(config(&model, vectors, word)?, model, seed, optimizer(1e-2))?;
        assert_eq!((sets.len(), sets[0].name()), (1, "text_encoder"));
        Ok(sets[0].tensors()?["vectors"].to_vec2()?)
    };
    let rows = table.to_vec2::<f32>()?;
    let wanted: Vec<_> = (0..vectors).map(|i| rows[ids[i % ids.len()] as usize].clone()).collect();
    assert_eq!(started(Some(word), SEED)?, wanted);

    let near = started(None, SEED)?;
    let count = rows.len() as f64;
    let column = |i: usize| rows.iter().map(move |row| f64::from(row[i]));
    let means: Vec<f64> = (0..rows[0].len()).map(|i| column(i).sum::<f64>() / count).collect();
    let squares = (0..means.len()).map(|i| column(i).map(|value| (value - means[i]).powi(2)).sum::<f64>());
    let deviation = (squares.sum::<f64>() / (count * means.len() as f64)).sqrt();
    let away =
        near.iter().flat_map(|row| row.iter().zip(&means).map(|(&value, mean)| (f64::from(value) - mean) / deviation));
    let away: Vec<f64> = away.collect();
    let share = (away.iter().map(|d| d * d).sum::<f64>() / away.len() as f64).sqrt();
    // The deviation of so many normal numbers is within four of its own deviations of a tenth.
    assert!((share / 0.1 - 1.0).abs() < 4.0 / (2.0 * away.len() as f64).sqrt(), "{share} of the deviation");
    assert!(near[0] != near[1] && near != started(None, SEED + 1)? && near == started(None, SEED)?);
    Ok(())
}

/// The loss of the first step's batch by the small Stable Diffusion 1.x, which is built from its files, with an embedding's file.
fn loss_by_files(path: &Path) -> TestResult<f64> {
    let files = ModelFiles::folder(&model_folder("sd15"))?;
    let open = |component| Checkpoint::open(&files, component, Precision::Full, DType::F32, &Device::Cpu);
    let (unet, text) = (open("unet")?, open("text_encoder")?);
    let network = SD1.architecture(&files)?.network(&Weights::new(&unet), DType::F32)?;
    let text_config = ClipTextConfig::from_fields(&files.config("text_encoder", "config.json")?)?;
    let rows = embeddings(path)?;
    let [vectors] = &rows[..] else { return Err("one tensor is that of one text encoder".into()) };
    let mut encoder = ClipTextModel::new(&Weights::new(&text), text_config)?;
    let mut tokenizer = Tokenizer::from_files(&files, "tokenizer")?;
    encoder.add_embeddings(tokenizer.add_token(TOKEN, vectors.dim(0)?)?[0], vectors)?;
    let batch = batch()?;
    let captions = batch.tokens.flatten_all()?.to_vec1::<u32>()?;
    let ids = captions.into_iter().map(|caption| Ok(tokenizer.encode(CAPTIONS[caption as usize])?.ids));
    let ids = Tensor::new(ids.collect::<TestResult<Vec<_>>>()?, &Device::Cpu)?;
    let conditioning = Conditioning::text(encoder.forward(&ids)?.last_hidden_state);
    loss_of(network.as_ref(), &files.config("scheduler", "scheduler_config.json")?, &conditioning, &batch)
}

/// The tensors of a file, in the order of their names.
fn embeddings(path: &Path) -> TestResult<Vec<Tensor>> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let mut names: Vec<_> = tensors.keys().collect();
    names.sort();
    Ok(names.into_iter().map(|name| tensors[name].clone()).collect())
}

/// Training lowers the loss of a batch that it sees again and again, and moves every embedding; a model that is built from its files
/// has the same loss with the file, so nothing else was moved.
#[test]
fn the_file_does_what_the_trained_embeddings_do() -> TestResult {
    let mut trainer = trainer(load("sd15", HeldWeights::default())?, 2, Some("fox"))?;
    let start = trainer.sets()[0].tensors()?["vectors"].to_vec2::<f32>()?;
    let (first, _) = loss_and_gradients(&mut trainer, &[], 0.0)?;
    let batch = batch()?;
    for _ in 0..12 {
        trainer.step(|| Ok(batch.clone()))?;
    }
    let trained = trainer.sets()[0].tensors()?["vectors"].to_vec2::<f32>()?;
    assert!(start.iter().flatten().zip(trained.iter().flatten()).all(|(before, after)| before != after));
    // The first step's noise and timesteps once more.
    let mut state = trainer.state();
    state.step = 0;
    trainer.restore(state)?;
    let (last, _) = loss_and_gradients(&mut trainer, &[], 0.0)?;
    assert!(last < first, "{first} {last}");

    let folder = tempfile::tempdir()?;
    trainer.task().write_model(trainer.sets(), &(), folder.path())?;
    let of_file = loss_by_files(&folder.path().join("learned_embeds.safetensors"))?;
    assert!((of_file - last).abs() < 1e-6 * last, "{of_file} {last} after {first}");
    assert!(first - last > 100.0 * (of_file - last).abs(), "{of_file} {last} after {first}");
    Ok(())
}

/// One text encoder has its embeddings under the token's name, two have them as clip_l and clip_g; the program reads both back.
#[test]
fn the_file_has_diffusers_form() -> TestResult {
    for (name, names) in [("sd15", vec![TOKEN]), ("xl-small", vec!["clip_g", "clip_l"]), ("xl-refiner", vec![TOKEN])] {
        let model = load(name, HeldWeights::default())?;
        let config = EmbeddingTrainingConfig { dtype: DType::F16, ..config(&model, 2, None)? };
        let (task, sets) = EmbeddingTraining::new(config, model, SEED, optimizer(1e-2))?;
        let folder = tempfile::tempdir()?;
        task.write_model(&sets, &(), folder.path())?;
        let path = folder.path().join("learned_embeds.safetensors");
        let bytes = std::fs::read(&path)?;
        let file = safetensors::SafeTensors::deserialize(&bytes)?;
        let mut found = file.names();
        found.sort();
        assert_eq!(found, names);
        assert!(
            file.tensors()
                .iter()
                .all(|(_, tensor)| tensor.shape()[0] == 2 && tensor.dtype() == safetensors::Dtype::F16)
        );

        let embedding = TextualInversion::read(&path, None)?;
        assert_eq!((embedding.token(), embedding.encoders()), (TOKEN, sets.len()));
        assert_eq!(TextualInversion::read(&path, Some("<other>"))?.token(), "<other>");
        let files = ModelFiles::folder(&model_folder(name))?;
        let architecture = tweedie::families::Families::built_in().detect(&files)?.family.architecture(&files)?;
        let (mut encoder, _) = architecture.text_encoder(&Loader::new(&files, &Device::Cpu))?;
        embedding.add_to(encoder.as_mut())?;
        assert!(encoder.token_ids(TOKEN)?.iter().all(|ids| ids.len() == 2));
    }
    Ok(())
}

#[test]
fn what_cannot_be_trained_is_named() -> TestResult {
    let fails = |change: &dyn Fn(&mut EmbeddingTrainingConfig), parts: &[&str]| -> TestResult {
        let model = load("sd15", HeldWeights::default())?;
        let mut config = config(&model, 2, None)?;
        change(&mut config);
        let made = EmbeddingTraining::new(config, model, SEED, optimizer(1e-4));
        let message = made.err().ok_or("it is trained")?.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        Ok(())
    };
    fails(&|config| config.token.token = "a fox".into(), &["`token`", "\"a fox\"", "one word"])?;
    fails(&|config| config.token.token.clear(), &["`token`", "one word"])?;
    fails(&|config| config.token.token = "A".into(), &["`token`", "\"A\"", "has it already"])?;
    fails(&|config| config.token.vectors = 0, &["`vectors` is 0", "at least 1"])?;
    fails(&|config| config.token.init_word = Some("a fox".into()), &["`init_word`", "one word"])?;
    fails(
        &|config| config.token.init_word = Some("lighthouses by night".replace(' ', "-")),
        &["tokens", "`vectors` is 2"],
    )?;
    fails(&|config| config.captions.push("a fox".into()), &["a caption is \"a fox\"", TOKEN])?;
    let long = "a tree and ".repeat(30) + TOKEN;
    fails(&|config| config.captions.push(long.clone()), &["a tree", "that the text encoder reads", "shorter"])?;
    fails(&|config| config.token.vectors = 76, &["a caption", "76 tokens", "fewer `vectors`"])?;
    Ok(())
}
