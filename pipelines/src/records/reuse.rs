//! The settings in a picture's file, for another picture.

use crate::records::provenance::Provenance;
use crate::requests::options::Options;
use crate::settings::MOST_MERGED;
use serde_json::{Map, Value};
use std::path::Path;
use tweedie::images::{Photo, TextChunk, picture_bytes, read_picture_text};
use tweedie::schedulers;
use tweedie::{Error, ErrorKind, Result};

/// Fields of a scheduler's configuration that a request has options for: all others are the model's.
const OF_REQUESTS: [&str; 4] = ["timestep_spacing", "timesteps", "sigmas", "eta"];

/// What a picture says of how it was made, as the options of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReusedSettings {
    /// Options by their keys, those of the picture's task among them.
    pub options: Map<String, Value>,
    /// What the model is called that made it, if it says.
    pub model: Option<String>,
    /// What it says besides and has no option, each as a name and its value.
    pub unused: Vec<String>,
}

impl ReusedSettings {
    /// Reads the settings in a picture: this program's own, else those that A1111's web UI and programs like it write.
    ///
    /// # Errors
    /// If the file is no picture, or has no settings.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of_picture(&picture_bytes(path)?, path)
    }

    /// The same of a file in memory; `path` is named in messages.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_picture(bytes: &[u8], path: &Path) -> Result<Self> {
        let texts = read_picture_text(bytes, path)?;
        let text = |keyword: &str| texts.iter().find(|text| text.keyword == keyword).map(|text| text.text.as_str());
        let malformed = |reason: String| Error::malformed(ErrorKind::File, "picture with settings", path, reason);
        if let Some(json) = text(TextChunk::SETTINGS) {
            let found = Self::of_record(json, Photo::size(bytes, path)?);
            return found.map_err(|reason| malformed(format!("its settings are wrong: {reason}")));
        }
        text(TextChunk::PARAMETERS).and_then(Self::of_parameters).ok_or_else(|| {
            malformed("it has no settings of Tweedie, and none that A1111's web UI or a program like it wrote".into())
        })
    }

    /// From this program's record, in a picture of so many pixels, width and height.
    fn of_record(json: &str, (width, height): (usize, usize)) -> Result<Self, String> {
        let mut options: Map<String, Value> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let mut provenance = Provenance::default();
        provenance.take(&mut options).map_err(|wrong| wrong.to_string())?;
        // Of a picture that was made from another one the record has the size that the model worked at, which was asked for only
        // where it is the picture's: with a part of it in view it is not.
        let scale = u64::from(provenance.scale.unwrap_or(1));
        let side = |name: &str| options.get(name)?.as_u64()?.checked_mul(scale);
        if provenance.image.is_some() && (side("width"), side("height")) != (Some(width as u64), Some(height as u64)) {
            for name in ["width", "height"] {
                options.shift_remove(name);
            }
        }
        let lists =
            [("LoRAs", &provenance.loras), ("embeddings", &provenance.embeddings), ("controls", &provenance.controls)];
        let unused = lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(what, list)| {
            let names: Vec<_> = list.iter().filter_map(|entry| entry["name"].as_str()).collect();
            format!("{what} ({})", names.join(", "))
        });
        Ok(Self { unused: unused.collect(), options, model: Some(provenance.model).filter(|name| !name.is_empty()) })
    }

    /// From the text that A1111's web UI writes, whose last line has names and values.
    fn of_parameters(text: &str) -> Option<Self> {
        let (texts, line) = match text.rfind("\nSteps: ") {
            Some(at) => (&text[..at], &text[at + 1..]),
            None if text.starts_with("Steps: ") => ("", text),
            None => return None,
        };
        let (prompt, negative) = match texts.split_once("Negative prompt:") {
            Some((prompt, negative)) => (prompt, Some(negative.trim())),
            None => (texts, None),
        };
        let mut found = Self::default();
        found.put("prompt", prompt.trim().into());
        found.put("prompt_syntax", "weighted".into());
        if let Some(negative) = negative {
            found.put("negative_prompt", negative.into());
        }
        let mut values: Map<String, Value> = Map::new();
        for (name, value) in values_of(line) {
            values.insert(name, value.into());
        }
        found.take(values);
        Some(found)
    }

    fn put(&mut self, name: &str, value: Value) {
        self.options.insert(name.into(), value);
    }

    /// Takes the values that are options; the others are named.
    fn take(&mut self, mut values: Map<String, Value>) {
        let mut text = |name: &str| values.shift_remove(name).and_then(|value| value.as_str().map(str::to_owned));
        let number = |text: &str| text.parse::<f64>().ok().map(Value::from);
        let count = |text: &str| text.parse::<u64>().ok();
        for (name, option) in [("CFG scale", "guidance_scale"), ("Eta", "eta")] {
            if let Some(value) = text(name).and_then(|text| number(&text)) {
                self.put(option, value);
            }
        }
        // What is beyond the most that can be merged is cut to it there.
        if let Some(share) = text("Token merging ratio").and_then(|text| text.parse::<f64>().ok()) {
            self.put("token_merging", share.min(MOST_MERGED).into());
        }
        for (name, option, least) in [("Steps", "steps", 0), ("Seed", "seed", 0), ("Clip skip", "clip_skip", 1)] {
            // There the last layer is number 1.
            if let Some(value) = text(name).and_then(|text| count(&text)?.checked_sub(least)) {
                self.put(option, value.into());
            }
        }
        if let Some(size) = text("Size")
            && let Some((width, height)) = size.split_once('x')
            && let (Some(width), Some(height)) = (count(width), count(height))
        {
            self.put("width", width.into());
            self.put("height", height.into());
        }
        let spacing = text("Schedule type").filter(|name| !["Automatic", "Normal"].contains(&name.as_str()));
        if let Some(sampler) = text("Sampler") {
            let whole = spacing.map_or_else(|| sampler.clone(), |spacing| format!("{sampler} {spacing}"));
            match [&whole, &sampler].into_iter().find_map(|name| schedulers::by_name(name).ok()) {
                Some(choice) => self.put("scheduler", choice.name().into()),
                None => self.unused.push(format!("Sampler ({whole})")),
            }
        }
        self.model = text("Model");
        for known in ["Model hash", "VAE hash", "Version"] {
            text(known);
        }
        self.unused
            .extend(values.iter().map(|(name, value)| format!("{name} ({})", value.as_str().unwrap_or_default())));
    }

    /// The options for another model than the one that made the picture: of the scheduler's configuration, what requests choose.
    pub fn for_another_model(mut self) -> Map<String, Value> {
        if let Some(Value::Object(config)) = self.options.get_mut("scheduler_config") {
            config.retain(|name, _| OF_REQUESTS.contains(&name.as_str()));
        }
        self.options
    }
}

/// Names and values of a line, `Name: value, Name: "a, b"`.
fn values_of(line: &str) -> Vec<(String, String)> {
    let mut values = Vec::new();
    let mut rest = line;
    while let Some((name, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let (value, left) = if after.starts_with('"') {
            let mut json = serde_json::Deserializer::from_str(after).into_iter::<String>();
            match json.next() {
                Some(Ok(text)) => (text, &after[json.byte_offset()..]),
                _ => break,
            }
        } else {
            let end = after.find([',', '\n']).unwrap_or(after.len());
            (after[..end].trim().to_owned(), &after[end..])
        };
        values.push((name.trim().to_owned(), value));
        rest = left.trim_start_matches([',', '\n', ' ']);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_of_other_programs_become_options() -> Result<(), Box<dyn std::error::Error>> {
        let text = "a (fluffy:1.2) fox,\nat night\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, \
                    CFG scale: 6.5, Seed: 42, Size: 512x768, Model hash: 0123456789, Model: dream, Clip skip: 2, Token merging ratio: 0.9, \
                    Lora hashes: \"ink: 01, b: 02\", Hires upscale: 2, Version: v1.10.1";
        let found = ReusedSettings::of_parameters(text).ok_or("nothing")?;
        let want = json!({
            "prompt": "a (fluffy:1.2) fox,\nat night", "prompt_syntax": "weighted", "negative_prompt": "blurry",
            "guidance_scale": 6.5, "steps": 20, "seed": 42, "clip_skip": 1, "width": 512, "height": 768,
            "scheduler": "dpm++2m-karras", "token_merging": 0.75,
        });
        assert_eq!(Value::from(found.options), want);
        assert_eq!(found.model.as_deref(), Some("dream"));
        assert_eq!(found.unused, ["Lora hashes (ink: 01, b: 02)", "Hires upscale (2)"]);
        Ok(())
    }

    #[test]
    fn what_has_no_option_is_named_and_other_text_is_none() -> Result<(), Box<dyn std::error::Error>> {
        let found =
            ReusedSettings::of_parameters("x\nSteps: 5, Sampler: Nobody's, Schedule type: Automatic").ok_or("")?;
        assert_eq!(found.unused, ["Sampler (Nobody's)"]);
        assert_eq!(found.options.get("steps"), Some(&json!(5)));
        assert_eq!(ReusedSettings::of_parameters("a photo of my cat"), None);
        // Broken quotes end the line.
        assert!(ReusedSettings::of_parameters("x\nSteps: 5, Model: \"a").is_some());
        Ok(())
    }

    #[test]
    fn another_model_keeps_its_own_schedule() -> Result<(), String> {
        let record = json!({
            "program": "tweedie", "kind": "txt2img", "model": "m", "prompt": "a fox", "seed": 3, "strength": 0.5,
            "loras": [{"name": "ink.safetensors"}], "scheduler_config": {"beta_end": 0.5, "eta": 0.3},
        });
        let found = ReusedSettings::of_record(&record.to_string(), (64, 64))?;
        assert_eq!(
            (found.model.as_deref(), found.unused.as_slice()),
            (Some("m"), &["LoRAs (ink.safetensors)".to_owned()][..])
        );
        assert_eq!(found.options["scheduler_config"], json!({"beta_end": 0.5, "eta": 0.3}));
        let want = json!({"prompt": "a fox", "seed": 3, "strength": 0.5, "scheduler_config": {"eta": 0.3}});
        assert_eq!(Value::from(found.for_another_model()), want);
        Ok(())
    }

    /// 80x80 pixels were made of a picture that the model saw 128x128 pixels of; 128x96, saved twice as large, were asked for.
    #[test]
    fn the_size_that_a_model_worked_at_is_not_asked_for() -> Result<(), String> {
        let image = json!({"name": "photo.png", "sha256": "00"});
        let size = |kind: &str, side: (u64, u64), scale: u64, picture| {
            let mut record = json!({"kind": kind, "width": side.0, "height": side.1, "scale": scale});
            if kind == "inpaint" {
                record["image"] = image.clone();
            }
            let found = ReusedSettings::of_record(&record.to_string(), picture)?;
            Ok::<_, String>(["width", "height"].map(|name| found.options.get(name).and_then(Value::as_u64)))
        };
        assert_eq!(size("inpaint", (128, 128), 1, (80, 80))?, [None; 2]);
        assert_eq!(size("inpaint", (128, 96), 2, (256, 192))?, [Some(128), Some(96)]);
        // A grid of pictures from a text.
        assert_eq!(size("txt2img", (128, 128), 1, (262, 128))?, [Some(128); 2]);
        Ok(())
    }
}
