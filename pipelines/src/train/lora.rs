//! Settings of training a LoRA, and what they mean for its factors.

use super::captioned::{pictures_of, with_class};
use super::choices::{LoraFormChoice, LoraModulesChoice};
use super::frozen::{FrozenModelData, FrozenModelSettings, FrozenModelTraining};
use super::settings::{CommonSettings, Preparation, TrainingSettings, setting, switch};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{options, serde_by_options};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tweedie::Result;
use tweedie::training::data::{CaptionedPictures, LatentBatches};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{FrozenModel, LoraTraining, LoraTrainingConfig};
use tweedie::training::{LowRankConfig, ParameterSet};

options! {
    /// Settings of training a LoRA. The defaults are for a few pictures of one thing.
    #[derive(Debug, Clone, PartialEq)]
    pub struct LoraTrainingSettings {
        flat {
            /// What all kinds of training have that leave a model as it is.
            frozen: FrozenModelSettings;
        }
        options {
            /// Rank of the changes of weights.
            rank: usize = 8 => setting(OptionKind::Count, "N");
            /// What a change is multiplied by, times the rank; by default the rank.
            alpha: Option<f64> = None => setting(OptionKind::Number, "F");
            /// Which weights change: those of attention, all of the transformer blocks, or those of residual blocks too (LoCon).
            modules: LoraModulesChoice = LoraModulesChoice::Attention =>
                setting(OptionKind::Choice(LoraModulesChoice::NAMES), "NAME");
            /// Change the text encoder too.
            train_text_encoder: bool = false => switch(FlagValue::On);
            /// The text encoder's learning rate, as a share of `learning_rate`.
            text_learning_rate: f64 = 0.5 => setting(OptionKind::Number, "F").needs("train_text_encoder");
            /// A folder of other pictures of the class that the new thing is of, such as foxes, which the model is to draw as
            /// before (DreamBooth's prior preservation): half of what is seen is of these.
            class_data: Option<PathBuf> = None => setting(OptionKind::Text, "DIR");
            /// One caption for all of them, in the place of those in files, such as "a fox".
            class_caption: Option<String> = None => setting(OptionKind::Text, "TEXT").needs("class_data");
            /// Share of captions that are taken for empty ones.
            caption_dropout: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// How the finished file calls its tensors: as kohya's scripts do, or as PEFT and diffusers do.
            lora_format: LoraFormChoice = LoraFormChoice::Kohya =>
                setting(OptionKind::Choice(LoraFormChoice::NAMES), "NAME");
        }
    }
}

impl Default for LoraTrainingSettings {
    fn default() -> Self {
        Self::of(FrozenModelSettings::default())
    }
}

serde_by_options!(LoraTrainingSettings);

impl TrainingSettings for LoraTrainingSettings {
    type Data = FrozenModelData;
    type Task = LoraTraining;
    type Batches = LatentBatches;

    const FREE: &'static [&'static str] = &["lora_format"];

    fn is_free(name: &str) -> bool {
        Self::FREE.contains(&name) || FrozenModelSettings::is_free(name)
    }

    fn common(&self) -> &CommonSettings {
        &self.frozen.common
    }

    fn settled(mut self, data: &FrozenModelData) -> Self {
        self.frozen.settle(data);
        self
    }

    fn check(&self) -> Result<()> {
        self.frozen.check()?;
        self.low_rank().check()
    }

    fn architecture(&self, data: &FrozenModelData) -> Result<Map<String, Value>> {
        self.frozen.architecture(data)
    }

    fn task(&self, data: &mut FrozenModelData) -> Result<(LoraTraining, Vec<ParameterSet>)> {
        let model = data.take_model()?;
        let config = LoraTrainingConfig {
            low_rank: self.low_rank(),
            objective: self.frozen.objective(&model)?,
            captions: data.captions(),
            caption_dropout: self.caption_dropout,
            size: data.size(),
            samples: self.frozen.samples(data),
            form: self.lora_format.into(),
            dtype: self.frozen.dtype.into(),
            metadata: self.metadata(data, &model),
        };
        let (rate, seed) = (self.frozen.learning_rate, self.frozen.common.seed);
        let text_optimizer = self.train_text_encoder.then(|| self.frozen.optimizer(rate * self.text_learning_rate));
        LoraTraining::new(config, model, seed, (self.frozen.optimizer(rate), text_optimizer))
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
        task: &LoraTraining,
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

impl FrozenModelTraining for LoraTrainingSettings {
    fn frozen(&self) -> &FrozenModelSettings {
        &self.frozen
    }

    /// Those of the folder with their captions, or with one for all.
    fn pictures(&self, folder: &Path) -> Result<CaptionedPictures> {
        let own = pictures_of(folder, self.frozen.caption.as_ref())?;
        with_class(own, self.class_data.as_ref(), self.class_caption.as_ref())
    }
}

impl LoraTrainingSettings {
    fn low_rank(&self) -> LowRankConfig {
        let alpha = self.alpha.unwrap_or(self.rank as f64);
        LowRankConfig { rank: self.rank, alpha, modules: self.modules.into() }
    }

    /// What kohya's scripts say of a run in the file, without anything that differs from one time to the next.
    fn metadata(&self, data: &FrozenModelData, model: &FrozenModel) -> BTreeMap<String, String> {
        let (frozen, family) = (&self.frozen, model.family_id());
        let predicts_v = model.scheduler().fields().get("prediction_type").is_some_and(|kind| kind == "v_prediction");
        let version = match family {
            "sd1" => "sd_v1",
            "sd2" if predicts_v => "sd_v2_v",
            "sd2" => "sd_v2",
            "sdxl" => "sdxl_base_v1-0",
            other => other,
        };
        let LowRankConfig { rank, alpha, .. } = self.low_rank();
        let name =
            frozen.model.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        let (height, width) = data.size();
        let hash = data.base()["sha256"].as_str().unwrap_or_default();
        let fields = [
            ("ss_base_model_version", version.to_owned()),
            // As Python writes it; kohya's scripts tell the second generation by it.
            ("ss_v2", if family == "sd2" { "True" } else { "False" }.into()),
            ("ss_sd_model_name", name.unwrap_or_else(|| "embedded".into())),
            ("ss_new_sd_model_hash", hash.to_owned()),
            ("ss_network_module", "networks.lora".into()),
            ("ss_network_dim", rank.to_string()),
            ("ss_network_alpha", alpha.to_string()),
            ("ss_max_train_steps", frozen.steps.to_string()),
            ("ss_steps", frozen.steps.to_string()),
            ("ss_num_train_images", data.pictures().len().to_string()),
            ("ss_resolution", format!("({width}, {height})")),
            ("ss_batch_size_per_device", frozen.common.batch_size.to_string()),
            ("ss_gradient_accumulation_steps", frozen.common.accumulate.to_string()),
            ("ss_learning_rate", frozen.learning_rate.to_string()),
            ("ss_unet_lr", frozen.learning_rate.to_string()),
            ("ss_lr_scheduler", frozen.common.lr_schedule.name().into()),
            ("ss_lr_warmup_steps", frozen.warmup_steps.to_string()),
            ("ss_optimizer", "AdamW".into()),
            ("ss_max_grad_norm", frozen.grad_clip.to_string()),
            ("ss_min_snr_gamma", frozen.snr_gamma.to_string()),
            ("ss_caption_dropout_rate", self.caption_dropout.to_string()),
            ("ss_mixed_precision", frozen.mixed_precision.name().into()),
            ("ss_seed", frozen.common.seed.to_string()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
