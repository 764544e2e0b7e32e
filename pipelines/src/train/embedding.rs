//! Settings of textual inversion.

use super::frozen::{FrozenModelData, FrozenModelSettings, FrozenModelTraining};
use super::settings::{CommonSettings, Preparation, TrainingSettings, setting};
use crate::requests::kind::OptionKind;
use crate::requests::options::{options, serde_by_options};
use serde_json::{Map, Value};
use std::path::Path;
use tweedie::training::data::{CaptionedPictures, LatentBatches, has_captions, read_captioned, with_captions};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{EmbeddingTraining, EmbeddingTrainingConfig};
use tweedie::training::{NewToken, ParameterSet};
use tweedie::{Error, ErrorKind, Result};

/// What is said of pictures without captions, one of these each time, around the token.
const TEMPLATES: [(&str, &str); 8] = [
    ("a picture of ", ""),
    ("a photo of ", ""),
    ("", ""),
    ("a close-up picture of ", ""),
    ("a small picture of ", ""),
    ("a good picture of ", ""),
    ("a picture of one ", ""),
    ("", ", a picture"),
];

options! {
    /// Settings of textual inversion. The defaults are for a few pictures of one thing.
    #[derive(Debug, Clone, PartialEq)]
    pub struct EmbeddingTrainingSettings {
        flat {
            /// What all kinds of training have that leave a model as it is.
            frozen: FrozenModelSettings;
        }
        options {
            /// The new word, which must be in every caption, such as `<fox>`; quote it in a shell. Where a folder has no captions at
            /// all, they are made of a few templates, as `a picture of <fox>` and `a photo of <fox>`.
            token: Option<String> = None => setting(OptionKind::Text, "TOKEN");
            /// A word whose tokens' embeddings the new ones start from, over and over where it has fewer; without one they start
            /// near the mean of all embeddings.
            init_word: Option<String> = None => setting(OptionKind::Text, "WORD");
            /// Embeddings that the word stands for in each text encoder.
            vectors: usize = 1 => setting(OptionKind::Count, "N");
        }
    }
}

impl Default for EmbeddingTrainingSettings {
    /// Steps and learning rate are those of the example of diffusers' script, a picture a step.
    fn default() -> Self {
        Self::of(FrozenModelSettings { steps: 3000, learning_rate: 5e-4, ..FrozenModelSettings::default() })
    }
}

serde_by_options!(EmbeddingTrainingSettings);

impl TrainingSettings for EmbeddingTrainingSettings {
    type Data = FrozenModelData;
    type Task = EmbeddingTraining;
    type Batches = LatentBatches;

    const FREE: &'static [&'static str] = FrozenModelSettings::FREE;

    fn common(&self) -> &CommonSettings {
        &self.frozen.common
    }

    fn settled(mut self, data: &FrozenModelData) -> Self {
        self.frozen.settle(data);
        self
    }

    fn check(&self) -> Result<()> {
        self.frozen.check()?;
        self.new_token()?.check()
    }

    fn architecture(&self, data: &FrozenModelData) -> Result<Map<String, Value>> {
        self.frozen.architecture(data)
    }

    fn task(&self, data: &mut FrozenModelData) -> Result<(EmbeddingTraining, Vec<ParameterSet>)> {
        let model = data.take_model()?;
        let config = EmbeddingTrainingConfig {
            token: self.new_token()?,
            objective: self.frozen.objective(&model)?,
            captions: data.captions(),
            size: data.size(),
            samples: self.frozen.samples(data),
            dtype: self.frozen.dtype.into(),
        };
        EmbeddingTraining::new(config, model, self.frozen.common.seed, self.frozen.optimizer(self.frozen.learning_rate))
    }

    fn recomputes(&self) -> bool {
        self.frozen.gradient_checkpointing
    }

    fn check_batches(&self, _: &FrozenModelData) -> Result<()> {
        Ok(())
    }

    fn batches(
        &self,
        data: &FrozenModelData,
        task: &EmbeddingTraining,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<LatentBatches> {
        self.frozen.batches(data, (task.model(), task.warnings()), preparation)
    }

    fn plan(&self) -> RunPlan {
        self.frozen.plan()
    }

    fn warnings(&self) -> Vec<String> {
        self.frozen.warnings()
    }
}

impl FrozenModelTraining for EmbeddingTrainingSettings {
    fn frozen(&self) -> &FrozenModelSettings {
        &self.frozen
    }

    /// Those of the folder with their captions, or with one for all; where there are none at all, with captions of templates.
    fn pictures(&self, folder: &Path) -> Result<CaptionedPictures> {
        let token = self.new_token()?;
        token.check()?;
        if let Some(caption) = &self.frozen.caption {
            if !token.is_in(caption) {
                let fix = format!("it must have {} in it", token.token);
                return Err(Error::invalid("`caption`", format!("{caption:?}"), fix));
            }
            return with_captions(folder, std::slice::from_ref(caption));
        }
        if !has_captions(folder)? {
            return with_captions(folder, &TEMPLATES.map(|(before, after)| format!("{before}{}{after}", token.token)));
        }
        let pictures = read_captioned(folder)?;
        match pictures.first_that_fails(|caption| token.is_in(caption)) {
            None => Ok(pictures),
            Some((place, caption)) => {
                let fix = format!(
                    "it must have {} in it; write it into every caption, give one for all as `caption`, or take all captions away to \
                     have them made",
                    token.token
                );
                Err(Error::unusable(ErrorKind::File, format!("the caption in {place}"), format!("{caption:?}"), fix))
            }
        }
    }
}

impl EmbeddingTrainingSettings {
    /// The token that is trained.
    fn new_token(&self) -> Result<NewToken> {
        let Some(token) = &self.token else {
            let fix = "give a word that no text has, as <thing>, which then stands for the pictures in prompts";
            return Err(Error::invalid("`token`", "not given", fix));
        };
        Ok(NewToken { token: token.clone(), vectors: self.vectors, init_word: self.init_word.clone() })
    }
}
