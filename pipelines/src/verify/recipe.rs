//! From a picture's record back to the request that made it.

use crate::adapters::Adapters;
use crate::device::DTypeChoice;
use crate::records::provenance::{InputRecord, Provenance, RECORD_FORM};
use crate::requests::control::ControlImage;
use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::InpaintRequest;
use crate::requests::lora::LoraRequest;
use crate::requests::options::{Options, WrongOption, shortened};
use crate::requests::text_to_image::TextToImageRequest;
use crate::settings::Settings;
use crate::task::TaskKind;
use crate::verify::faults;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tweedie::config::ConfigFields;
use tweedie::images::{Mask, Photo, TextChunk, read_picture_text};
use tweedie::{Error, ErrorKind, Result};

/// The lists of what was put on top of the model.
const ADAPTERS: [&str; 3] = ["loras", "embeddings", "controls"];

/// Fields that may be others without another picture, or are compared by their sums.
const IRRELEVANT: [&str; 9] =
    ["record", "model", "vae", "weights_sha256", "image", "mask", ADAPTERS[0], ADAPTERS[1], ADAPTERS[2]];

/// What a picture says of how it was made: what [`crate::Record::json`] wrote.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// All of it.
    fields: Map<String, Value>,
    provenance: Provenance,
    /// The options of its request.
    options: Map<String, Value>,
    path: PathBuf,
}

impl Recipe {
    /// Reads the settings in a picture file's bytes; `path` is named in messages.
    ///
    /// # Errors
    /// If it is no picture, has no settings of this program, or they are of a kind that cannot be repeated.
    pub fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let chunks = read_picture_text(bytes, path)?;
        let Some(chunk) = chunks.iter().find(|chunk| chunk.keyword == TextChunk::SETTINGS) else {
            let fix = "give a file that this program wrote and no other has saved since";
            return Err(Error::malformed(
                ErrorKind::File,
                "picture to verify",
                path,
                format!("it has no settings of Tweedie; {fix}"),
            ));
        };
        let fields: Map<String, Value> = serde_json::from_str(&chunk.text).map_err(|e| {
            Error::malformed(
                ErrorKind::File,
                "picture to verify",
                path,
                format!("its settings are no JSON object ({e})"),
            )
        })?;
        let (mut provenance, mut options) = (Provenance::default(), fields.clone());
        let taken = provenance.take(&mut options);
        let recipe = Self { fields, provenance, options, path: path.into() };
        taken.map_err(|wrong| recipe.of(wrong))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Whether it is a recipe that this version can follow, with everything in it that a picture follows from.
    fn check(&self) -> Result<()> {
        let (own, own_keys) = match self.kind() {
            "txt2img" => (Vec::new(), TextToImageRequest::keys()),
            "img2img" => (ImageToImageRequest::options(), ImageToImageRequest::keys()),
            "inpaint" => (InpaintRequest::options(), InpaintRequest::keys()),
            _ => return Err(self.wrong("kind", "pictures of txt2img, img2img and inpaint can be verified")),
        };
        let another = "this version cannot repeat that; take the one that made the picture";
        if self.provenance.record > RECORD_FORM {
            return Err(self.wrong("record", another));
        }
        if let Some(name) = self.options.keys().find(|name| !own_keys.contains(&name.as_str())) {
            return Err(self.wrong(name, another));
        }
        let needed = TextToImageRequest::options().into_iter().chain(own).filter(|option| option.always_recorded);
        for option in needed {
            let [key] = option.path[..] else { continue };
            let nothing = Some(&Value::Null);
            let value = self.options.get(key);
            // No negative prompt is as good as any.
            if value.is_none() || value == nothing && key != "negative_prompt" {
                return Err(self.wrong(key, format!("a picture does not follow from its settings without {key}")));
            }
        }
        Ok(())
    }

    /// The command that made it.
    pub fn kind(&self) -> &str {
        &self.provenance.kind
    }

    /// What the model is called.
    pub fn model_name(&self) -> &str {
        &self.provenance.model
    }

    /// What its autoencoder is called, if it is not the model's own.
    pub fn vae_name(&self) -> Option<&str> {
        self.provenance.vae.as_deref()
    }

    /// The SHA-256 of each weight file by its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn weights(&self) -> Result<&Map<String, Value>> {
        match &self.provenance.weights_sha256 {
            weights if !weights.is_empty() => Ok(weights),
            _ => {
                let fix = "it must name the weights; without, no model can be said to be the same";
                Err(self.wrong("weights_sha256", fix))
            }
        }
    }

    /// How many times it was enlarged when it was saved.
    pub fn scale(&self) -> Option<u32> {
        self.provenance.scale.filter(|&scale| scale > 1)
    }

    /// The number format of the weights.
    ///
    /// # Errors
    /// If it is none.
    pub fn dtype(&self) -> Result<DTypeChoice> {
        self.provenance.dtype.parse().map_err(|fix: String| self.wrong("dtype", fix))
    }

    /// A file that it was made from: "image", "mask".
    pub fn input(&self, role: &str) -> Option<&InputRecord> {
        match role {
            "image" => self.provenance.image.as_ref(),
            "mask" => self.provenance.mask.as_ref(),
            _ => None,
        }
    }

    /// What was put on top of the model: "loras", "embeddings" or "controls".
    pub fn adapters(&self, list: &str) -> &[Value] {
        match list {
            "loras" => &self.provenance.loras,
            "embeddings" => &self.provenance.embeddings,
            "controls" => &self.provenance.controls,
            _ => &[],
        }
    }

    /// Gives adapters the weights and tokens that were used, and control pictures their scales and times. LoRAs that
    /// acted beside the weights are taken out of `adapters`: they belong to the request.
    ///
    /// # Errors
    /// If there are more or fewer than the picture was made with, or its record lacks a number.
    pub fn apply_adapters(&self, adapters: &mut Adapters, images: &mut [ControlImage]) -> Result<Vec<LoraRequest>> {
        let given = [adapters.loras.len(), adapters.embeddings.len(), adapters.controls.len().max(images.len())];
        for (list, count) in ADAPTERS.into_iter().zip(given) {
            let recorded = self.adapters(list);
            if count != recorded.len() {
                let named = |entry: &Value| format!("{} (SHA-256 {})", entry["name"], entry["sha256"]);
                let all: Vec<_> = recorded.iter().map(named).collect();
                let fix = match all.is_empty() {
                    true => "the picture was made with none".to_owned(),
                    false => format!("the picture was made with {}; give each, in this order", all.join(", ")),
                };
                return Err(Error::invalid(format!("the number of {list}"), count, fix));
            }
        }
        let number = |list: &str, i: usize, name: &str| {
            self.adapters(list)[i][name].as_f64().ok_or_else(|| self.wrong(list, format!("each must have its {name}")))
        };
        for (i, lora) in adapters.loras.iter_mut().enumerate() {
            lora.weight = number(ADAPTERS[0], i, "weight")?;
        }
        for (embedding, recorded) in adapters.embeddings.iter_mut().zip(self.adapters(ADAPTERS[1])) {
            embedding.token = recorded["token"].as_str().map(str::to_owned);
        }
        for (i, image) in images.iter_mut().enumerate() {
            image.scale = number(ADAPTERS[2], i, "scale")?;
            image.start = number(ADAPTERS[2], i, "start")?;
            image.end = number(ADAPTERS[2], i, "end")?;
            image.guess = self.adapters(ADAPTERS[2])[i]["guess"].as_bool().unwrap_or(false);
        }
        let beside = |recorded: &&Value| recorded["applied"] == "beside";
        let loras = std::mem::take(&mut adapters.loras).into_iter().zip(self.adapters(ADAPTERS[0]));
        let (beside, merged): (Vec<_>, Vec<_>) = loras.partition(|(_, recorded)| beside(recorded));
        adapters.loras = merged.into_iter().map(|(lora, _)| lora).collect();
        Ok(beside.into_iter().map(|(lora, _)| LoraRequest { name: lora.path, weight: lora.weight }).collect())
    }

    /// Which file of an adapter, or which control picture, in another record is not what the picture was made with.
    pub fn other_adapters(&self, other: &Value) -> Option<String> {
        let of_list = |list: &'static str| self.adapters(list).iter().enumerate().map(move |(i, own)| (list, i, own));
        let sums = |entry: &Value| [entry["sha256"].clone(), entry["image"]["sha256"].clone()];
        let differs = |(list, i, own): &(&str, usize, &Value)| sums(own) != sums(&other[*list][*i]);
        let (list, i, own) = ADAPTERS.into_iter().flat_map(of_list).find(differs)?;
        let [[was, image_was], [is, image_is]] = [sums(own), sums(&other[list][i])];
        Some(match was == is {
            true => format!("the picture for {} had {image_was} and has {image_is}", own["name"]),
            false => format!("{} of its {list} had {was} and has {is}", own["name"]),
        })
    }

    /// The request of a picture from text, without control pictures.
    ///
    /// # Errors
    /// If a field is of another type.
    pub fn text_request(&self) -> Result<TextToImageRequest> {
        let mut request = TextToImageRequest::default();
        request.read(self.options.clone()).map_err(|wrong| self.of(wrong))?;
        Ok(request)
    }

    /// The request of a picture from a picture, without its size, which [`Self::settle`] finds.
    ///
    /// # Errors
    /// As [`Self::text_request`].
    pub fn image_request(&self, image: Photo) -> Result<ImageToImageRequest> {
        let mut request = ImageToImageRequest::of(image, TextToImageRequest::default());
        request.read(self.options.clone()).map_err(|wrong| self.of(wrong))?;
        (request.text.width, request.text.height) = (None, None);
        Ok(request)
    }

    /// The request of a repainted picture, without its size, which [`Self::settle`] finds.
    ///
    /// # Errors
    /// As [`Self::text_request`].
    pub fn inpaint_request(&self, image: Photo, mask: Option<Mask>) -> Result<InpaintRequest> {
        let mut request = InpaintRequest::of(image, mask, TextToImageRequest::default());
        request.read(self.options.clone()).map_err(|wrong| self.of(wrong))?;
        (request.text.width, request.text.height) = (None, None);
        Ok(request)
    }

    /// Settles its request for a model: `settle` does it with the width and height that it is given, or with none. The
    /// record has the size that the model worked at and not whether it was asked for, so an input's own way to a size is
    /// tried first. `picture` is the width and height of the picture, which its settings must lead to: what they say beyond
    /// that is not believed.
    ///
    /// # Errors
    /// If the request cannot be carried out, the input leads to another size, or the settings do not lead to the picture's.
    pub fn settle(
        &self,
        picture: (usize, usize),
        settle: &mut dyn FnMut(Option<(usize, usize)>) -> Result<Settings>,
    ) -> Result<Settings> {
        let TextToImageRequest { width, height, .. } = self.text_options()?;
        let (Some(width), Some(height)) = (width, height) else {
            return Err(self.wrong("width", "width and height must be whole numbers"));
        };
        let size = (width, height);
        let from_text = self.kind() == TaskKind::TextToImage.name();
        if from_text && size != picture {
            return Err(self.wrong_size(size, picture));
        }
        let settled = match settle(None) {
            Ok(settings) if (settings.width, settings.height) == size => settings,
            // What was asked for is what was made.
            _ if size == picture => settle(Some(size))?,
            settled => settled?,
        };
        if (settled.width, settled.height) != size {
            let fix = format!("this model and this input make {}x{} of it", settled.width, settled.height);
            return Err(self.wrong("width", fix));
        }
        if settled.picture_size() != picture {
            return Err(self.wrong_size(settled.picture_size(), picture));
        }
        self.repeated(settled)
    }

    fn wrong_size(&self, (width, height): (usize, usize), picture: (usize, usize)) -> Error {
        let reason = format!(
            "it has {}x{} pixels, width and height, and its settings make {width}x{height}: one of the two was changed after it \
             was made",
            picture.0, picture.1
        );
        Error::malformed(ErrorKind::File, "picture to verify", &self.path, reason)
    }

    /// The options that all commands share.
    fn text_options(&self) -> Result<TextToImageRequest> {
        let mut request = TextToImageRequest::default();
        request.take(&mut self.options.clone()).map_err(|wrong| self.of(wrong))?;
        Ok(request)
    }

    /// Settled settings with the scheduler's fields as the record has them: nothing that this version or the model's
    /// files would add counts.
    fn repeated(&self, mut settings: Settings) -> Result<Settings> {
        let mut fields = settings.scheduler_config.fields().clone();
        fields.retain(|name, _| name.starts_with('_'));
        fields.extend(self.text_options()?.scheduler_config);
        settings.scheduler_config = ConfigFields::from_fields("scheduler", fields);
        settings.build_scheduler()?.levels(settings.steps)?;
        Ok(settings)
    }

    /// Why the picture need not follow from its settings: what the version that made it did otherwise than it says.
    ///
    /// # Errors
    /// If the scheduler cannot be built.
    pub fn faults(&self, settings: &Settings) -> Result<Vec<String>> {
        faults::of(&self.provenance, settings)
    }

    /// What of the weights in another record is not what the picture was made with: `None` if all is.
    ///
    /// # Errors
    /// If this one names no weights.
    pub fn other_weights(&self, other: &Map<String, Value>) -> Result<Option<String>> {
        // By sums alone: who has a file may have given it another name.
        let sums = |weights: &Map<String, Value>| {
            let mut sums: Vec<_> = weights.values().map(Value::to_string).collect();
            sums.sort();
            sums
        };
        let own = self.weights()?;
        if sums(own) == sums(other) {
            return Ok(None);
        }
        let differing = own.iter().find(|(name, sum)| other.get(*name) != Some(sum));
        Ok(differing.map(|(name, sum)| format!("{name} had {sum} and has {}", other.get(name).unwrap_or(&Value::Null))))
    }

    /// The names of fields in which another record differs, with both values, the longer ones cut.
    pub fn differences(&self, other: &Value) -> Vec<String> {
        let empty = Map::new();
        let other = other.as_object().unwrap_or(&empty);
        let mut names: Vec<&String> = self.fields.keys().chain(other.keys()).collect();
        names.sort();
        names.dedup();
        let relevant = names.into_iter().filter(|name| !IRRELEVANT.contains(&name.as_str()));
        let differing = relevant.filter(|name| self.fields.get(*name) != other.get(*name));
        let value = |fields: &Map<String, Value>, name: &str| shortened(&fields.get(name).cloned().unwrap_or_default());
        differing
            .map(|name| format!("{name} was {} and is {}", value(&self.fields, name), value(other, name)))
            .collect()
    }

    fn wrong(&self, name: &str, fix: impl Into<String>) -> Error {
        let value = shortened(&self.fields.get(name).cloned().unwrap_or_default());
        Error::unusable(ErrorKind::File, format!("`{name}` in the settings of {}", self.path.display()), value, fix)
    }

    fn of(&self, wrong: WrongOption) -> Error {
        Error::unusable(
            ErrorKind::File,
            format!("`{}` in the settings of {}", wrong.name, self.path.display()),
            wrong.shown(),
            wrong.fix,
        )
    }
}
