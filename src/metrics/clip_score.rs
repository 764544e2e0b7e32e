//! Whether pictures show what texts say, as CLIP sees it: the CLIP score (Hessel et al. 2021, "CLIPScore").

use super::bootstrap::{Bootstrap, Figure};
use crate::checkpoints::{ModelFiles, SingleFile, TensorNames};
use crate::config::ConfigFields;
use crate::images::{CropBox, Picture};
use crate::layers::Weights;
use crate::models::{ClipTextConfig, ClipTextModel, ClipVisionConfig, ClipVisionModel};
use crate::text::Tokenizer;
use crate::{DType, Device, Error, ErrorKind, Result, Tensor};
use serde_json::{Map, Value};
use std::path::Path;

/// What a whole model's file is called, newest form first.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// Mean and standard deviation of the pictures that OpenAI's CLIP was trained on, from 0 to 1, of red, green and blue.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// A CLIP model: both encoders, the tokenizer, and how pictures are brought into its form.
#[derive(Debug)]
pub struct ClipModel {
    text: ClipTextModel,
    vision: ClipVisionModel,
    tokenizer: Tokenizer,
    mean: [f64; 3],
    deviation: [f64; 3],
}

/// The directions of texts, unit vectors.
#[derive(Debug, Clone)]
pub struct TextDirections {
    /// `[texts, projection_dim]`, f32.
    pub directions: Tensor,
    /// How many texts were too long for the model, whose ends count for nothing.
    pub cut: usize,
}

impl ClipModel {
    /// Loads a model in transformers' form, on the CPU: a folder with `config.json`, the weights, the tokenizer's files and, if they
    /// say otherwise than OpenAI's, `preprocessor_config.json`.
    ///
    /// # Errors
    /// If it is none, or a file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let files = ModelFiles::folder(folder)?;
        let config = files.path("config.json");
        let fields: Map<String, Value> = serde_json::from_str(&files.read_text("config.json")?)
            .map_err(|e| Error::malformed(ErrorKind::Model, "configuration file", &config, e.to_string()))?;
        let part = |name: &str| {
            let part = fields.get(name).and_then(Value::as_object).cloned();
            let fix = "it is no CLIP model; take one such as openai/clip-vit-base-patch32, in transformers' form";
            part.ok_or_else(|| {
                Error::unusable(ErrorKind::Model, format!("{name} in {}", config.display()), "missing", fix)
            })
        };
        let (text, vision) = (part("text_config")?, part("vision_config")?);
        let whole = ConfigFields::from_fields("CLIP model", fields.clone());
        let projection_dim = whole.usize("projection_dim", 512)?;
        let text = ConfigFields::from_fields("text_config", text).with("projection_dim", projection_dim);
        let vision = ConfigFields::from_fields("vision_config", vision);

        let Some(name) = WEIGHTS.into_iter().find(|name| files.exists(name)) else {
            let fix = format!("it has none of {}; models in several files are not read", WEIGHTS.join(", "));
            return Err(Error::unusable(ErrorKind::Model, "the CLIP model", folder.display(), fix));
        };
        let file = SingleFile::open(&files.path(name))?;
        let mut names = crate::checkpoints::ComponentNames::from(TensorNames::plain(""));
        names.unused = ["logit_scale", "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"]
            .map(str::to_owned)
            .into();
        let checkpoint = file.checkpoint("CLIP model", names, None, DType::F32, &Device::Cpu);
        let weights = Weights::new(&checkpoint);
        let text = ClipTextModel::new(&weights, ClipTextConfig::from_fields(&text)?);
        let vision = ClipVisionModel::new(&weights, ClipVisionConfig::from_fields(&vision, projection_dim)?);
        drop(weights);
        // What did not fit explains a failure to build better than the failure itself.
        checkpoint.finish(&[])?;
        let (mean, deviation) = normalization(&files)?;
        Ok(Self { text: text?, vision: vision?, tokenizer: Tokenizer::from_files(&files, ".")?, mean, deviation })
    }

    /// A picture as the model takes it: its shorter side at the model's size by bicubic resampling, the middle cut out, normalised.
    ///
    /// # Shapes
    /// The result: `[1, 3, side, side]`.
    ///
    /// # Errors
    /// If the picture is so long that it becomes too large.
    pub fn prepare(&self, picture: &Picture) -> Result<Tensor> {
        let side = self.vision.config().image_size;
        let (width, height) = (picture.width(), picture.height());
        let longer = |long: usize, short: usize| side * long / short;
        let (width, height) =
            if width <= height { (side, longer(height, width)) } else { (longer(width, height), side) };
        let resized = picture.resized_bicubic(width, height)?;
        let middle = CropBox { left: (width - side) / 2, top: (height - side) / 2, width: side, height: side };
        let rgb = resized.crop(&middle)?;
        let value = |channel: usize| {
            let bytes = rgb.rgb().iter().skip(channel).step_by(3);
            bytes.map(move |&byte| ((f64::from(byte) / 255.0 - self.mean[channel]) / self.deviation[channel]) as f32)
        };
        let values: Vec<f32> = (0..3).flat_map(value).collect();
        Ok(Tensor::from_vec(values, (1, 3, side, side), &Device::Cpu)?)
    }

    /// The directions of prepared pictures, unit vectors, `[batch, projection_dim]`.
    ///
    /// # Errors
    /// If they are not as [`Self::prepare`] makes them.
    pub fn pictures(&self, pictures: &Tensor) -> Result<Tensor> {
        unit(&self.vision.forward(pictures)?)
    }

    /// The directions of texts.
    ///
    /// # Errors
    /// If the model has no projection of texts.
    pub fn texts(&self, texts: &[&str]) -> Result<TextDirections> {
        let (mut ids, mut cut) = (Vec::with_capacity(texts.len()), 0);
        for text in texts {
            let tokens = self.tokenizer.encode(text)?;
            cut += usize::from(tokens.cut.is_some());
            ids.push(tokens.ids);
        }
        let embeds = self.text.forward(&Tensor::new(ids, &Device::Cpu)?)?.text_embeds;
        let fix = "it has no text_projection.weight; take a whole CLIP model";
        let embeds =
            embeds.ok_or_else(|| Error::unusable(ErrorKind::Model, "the CLIP model", "without a projection", fix))?;
        Ok(TextDirections { directions: unit(&embeds)?, cut })
    }
}

/// What pictures are normalised by.
fn normalization(files: &ModelFiles) -> Result<([f64; 3], [f64; 3])> {
    const FILE: &str = "preprocessor_config.json";
    if !files.exists(FILE) {
        return Ok((MEAN, DEVIATION));
    }
    let fields = ConfigFields::from_json("picture preparation", &files.read_text(FILE)?, &files.path(FILE))?;
    let three = |name: &str, usual: [f64; 3]| match fields.list(name)? {
        None => Ok(usual),
        Some(values) => values.try_into().map_err(|_| fields.wrong(name, "it must be a list of three numbers")),
    };
    let (mean, deviation) = (three("image_mean", MEAN)?, three("image_std", DEVIATION)?);
    match deviation.iter().all(|&deviation| deviation > 0.0) {
        true => Ok((mean, deviation)),
        false => Err(fields.wrong("image_std", "each must be above 0")),
    }
}

fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)?)
}

/// How well each picture shows its text, from 0 to 100: a hundred times the cosine of their directions, or 0 if that is below 0.
///
/// # Shapes
/// Both `[pictures, projection_dim]`, unit vectors.
///
/// # Errors
/// If the shapes differ, or a value is not finite.
pub fn clip_scores(pictures: &Tensor, texts: &Tensor) -> Result<Vec<f64>> {
    if pictures.dims() != texts.dims() {
        let shapes = format!("{:?} and {:?}", pictures.dims(), texts.dims());
        return Err(Error::invalid("the shapes of directions", shapes, "give each picture its text"));
    }
    let cosines = (pictures.to_dtype(DType::F64)? * texts.to_dtype(DType::F64)?)?.sum(1)?.to_vec1::<f64>()?;
    match cosines.iter().all(|cosine| cosine.is_finite()) {
        true => Ok(cosines.into_iter().map(|cosine| 100.0 * cosine.max(0.0)).collect()),
        false => Err(Error::NotFinite {
            stage: "CLIP".into(),
            detail: "the directions of some pictures or texts".into(),
            fix: "the model's weights are damaged; get them again",
        }),
    }
}

/// The mean of pictures' scores, with its interval.
///
/// # Errors
/// If there is none.
pub fn clip_score(scores: &[f64], bootstrap: &Bootstrap) -> Result<Figure> {
    if scores.is_empty() {
        return Err(Error::invalid("the number of pictures", 0, "give at least one"));
    }
    bootstrap.mean(scores)
}
