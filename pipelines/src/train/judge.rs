//! Settings of training a judge of pictures of prompts.

use super::component::Component;
use super::latent::load_autoencoder;
use super::settings::{
    CommonSettings, FROM, Preparation, START, TrainingSet, TrainingSettings, at_least_one, setting, zero_or_above,
};
use crate::model::Model;
use crate::requests::kind::OptionKind;
use crate::requests::options::{option, options, serde_by_options};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::families::Families;
use tweedie::models::judge::{JudgeClasses, JudgeConfig};
use tweedie::training::data::{DecodedPictures, JudgeAugmentation, JudgeBatches, JudgedPictures};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{FrozenAutoencoder, JudgeTest, JudgeTraining};
use tweedie::training::{OptimizerOptions, ParameterSet};
use tweedie::{Error, Result};

/// Passes over the data where nothing is said.
const EPOCHS: u64 = 4;

/// The file of decoded pictures in a run's folder.
const DECODED: &str = "decoded.safetensors";

/// The folder of a judge in a model.
const JUDGE: &str = "judge";

options! {
    /// Settings of training a judge, a small network that says what a picture shows. The defaults are for tens of thousands of
    /// pictures on a few CPU cores.
    #[derive(Debug, Clone, PartialEq)]
    pub struct JudgeTrainingSettings {
        flat {
            /// What all kinds of training have.
            common: CommonSettings;
        }
        options {
            /// Passes over the data.
            epochs: Option<u64> = None => option(OptionKind::Count, "N").default("4");
            /// Steps of the run, in the place of `epochs`.
            steps: Option<u64> = None => setting(OptionKind::Count, "N").excluded_by("epochs");
            /// An autoencoder that pictures go through, so that the judge is right on generated pictures too: a folder with its
            /// config.json, or a model that has one.
            vae: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// The share of pictures that go through the autoencoder, once, before the first step.
            vae_share: f64 = 0.5 => setting(OptionKind::Number, "F").needs("vae");
            /// Learning rate after the warm-up.
            learning_rate: f64 = 2e-3 => setting(OptionKind::Number, "F");
            /// Steps over which the learning rate rises.
            warmup_steps: Option<u64> = None => setting(OptionKind::Count, "N").default("100, at most a tenth of all");
            /// Largest norm of the gradient; 0 does not cut it.
            grad_clip: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Decay of the moving average of weights, which is the judge in the end.
            ema_decay: Option<f64> = None => setting(OptionKind::Number, "F").default("0.999, less in short runs");
            /// Side of the squares that the judge looks at, to which pictures are averaged.
            sample_size: usize = 64 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Channels of the first convolution, then of each halved resolution.
            channels: Vec<usize> = vec![16, 24, 64, 128, 160] =>
                setting(OptionKind::Counts, "N,N,...").default("16,24,64,128,160").excluded_by(FROM);
            /// Width of the summary of a whole picture.
            summary_size: usize = 128 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// The folder of a judge to go on from, with its network; it has to be there until the run ends.
            from: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// The most pixels, of those that the judge looks at, by which pictures are moved at random.
            shift: usize = 2 => setting(OptionKind::Count, "N");
            /// The most that pictures are blurred at random, 0 to 1.
            blur: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// The largest standard deviation of noise that is put on pictures, where 2 is from black to white.
            noise: f64 = 0.08 => setting(OptionKind::Number, "F");
        }
    }
}

impl Default for JudgeTrainingSettings {
    fn default() -> Self {
        Self::of(CommonSettings::default())
    }
}

serde_by_options!(JudgeTrainingSettings);

/// Pictures with what they show, and the autoencoder that some of them go through.
#[derive(Debug)]
pub struct JudgeTrainingData {
    train: Arc<JudgedPictures>,
    test: Option<JudgedPictures>,
    fingerprint: String,
    autoencoder: Option<Arc<FrozenAutoencoder>>,
    start: Option<Start>,
}

/// A judge that training goes on from.
#[derive(Debug)]
struct Start {
    component: Component,
    network: JudgeConfig,
}

impl Start {
    fn open(model: &Path) -> Result<Self> {
        let component = Component::in_folder(model, JUDGE)?;
        let network = JudgeConfig { accuracy: Value::Null, ..JudgeConfig::from_fields(component.fields())? };
        Ok(Self { component, network })
    }

    /// That the pictures show all that the judge knows, and nothing else.
    fn check(&self, shown: &JudgeClasses) -> Result<()> {
        let (known, shown) = (self.network.classes.fields(), shown.fields());
        for ((kind, known), shown) in known.iter().zip(shown.values()) {
            let names = |list: &Value| list.as_array().cloned().unwrap_or_default();
            let (known, shown) = (names(known), names(shown));
            let only = |here: &[Value], there: &[Value]| here.iter().find(|name| !there.contains(name)).cloned();
            let what = match (only(&shown, &known), only(&known, &shown)) {
                (None, None) => continue,
                (Some(new), _) => format!("{new}, which the judge does not know"),
                (None, Some(missing)) => format!("not {missing}, which the judge knows"),
            };
            let fix = "a judge goes on with pictures of all that it knows and nothing else; train a new one";
            return Err(Error::invalid(format!("what the pictures show of `{kind}`"), what, fix));
        }
        Ok(())
    }
}

impl JudgeTrainingData {
    /// Reads the pictures of `data`, or of the folder `train` in it if there is one; and those to judge by, of `test`, or else of
    /// the folder `test` in `data` if there is one. Loads the autoencoder.
    ///
    /// `resize` is the side of the square that each picture is made to.
    ///
    /// # Errors
    /// If a folder has bad data, which is named with file and line, or the autoencoder cannot be used.
    pub fn read(
        data: &Path,
        test: Option<&Path>,
        resize: Option<usize>,
        settings: &JudgeTrainingSettings,
        vae: Option<&Model>,
    ) -> Result<Self> {
        let start = settings.from.as_deref().map(Start::open).transpose()?;
        let size = start.as_ref().map_or(settings.sample_size, |start| start.network.sample_size);
        if !(1..=1024).contains(&size) {
            return Err(Error::invalid("`sample_size`", size, "give from 1 to 1024 pixels"));
        }
        if let Some(folder) = [Some(data), test].into_iter().flatten().find(|folder| !folder.is_dir()) {
            let fix = "there is no such folder; give one with pictures and a metadata.jsonl";
            return Err(Error::missing("the data folder", folder.display(), fix));
        }
        let autoencoder = vae.map(|model| load_autoencoder(model, None, &Families::built_in())).transpose()?;
        let inner = |name: &str| Some(data.join(name)).filter(|folder| folder.is_dir());
        let read = |folder: &Path| JudgedPictures::read(folder, resize, size);
        let train = read(inner("train").as_deref().unwrap_or(data))?;
        let test = test.map(Path::to_path_buf).or_else(|| inner("test")).map(|folder| read(&folder)).transpose()?;
        let autoencoder = autoencoder.map(|(autoencoder, _)| Arc::new(autoencoder));
        if let Some(start) = &start {
            start.check(&JudgeClasses::of(train.shown()))?;
        }
        Ok(Self { fingerprint: train.fingerprint(), train: Arc::new(train), test, autoencoder, start })
    }
}

impl TrainingSet for JudgeTrainingData {
    fn images(&self) -> usize {
        self.train.len()
    }

    fn record(&self) -> Map<String, Value> {
        let fields = json!({"images": self.train.len(), "side": self.train.side(), "fingerprint": self.fingerprint});
        fields.as_object().cloned().unwrap_or_default()
    }
}

impl TrainingSettings for JudgeTrainingSettings {
    type Data = JudgeTrainingData;
    type Task = JudgeTraining;
    type Batches = JudgeBatches;

    /// Where the autoencoder and the judge to go on from are may change as long as they are the same, which `architecture` sees.
    const FREE: &'static [&'static str] = &["vae", "from"];

    fn common(&self) -> &CommonSettings {
        &self.common
    }

    fn settled(mut self, data: &JudgeTrainingData) -> Self {
        let length = (&mut self.steps, &mut self.epochs);
        self.common.settle_short(length, (EPOCHS, data), (&mut self.warmup_steps, &mut self.ema_decay));
        self
    }

    fn check(&self) -> Result<()> {
        self.common.check()?;
        if self.common.validation > 0.0 {
            let fix = "a judge is judged by pictures of their own; give them with `test`";
            return Err(Error::invalid("`validation`", self.common.validation, fix));
        }
        at_least_one("steps", self.plan().steps)?;
        zero_or_above("grad_clip", self.grad_clip)?;
        if !(self.vae_share > 0.0 && self.vae_share <= 1.0) {
            let fix = "take more than 0 and at most 1; without `vae` none go through it";
            return Err(Error::invalid("`vae_share`", self.vae_share, fix));
        }
        self.augmentation().check()
    }

    fn architecture(&self, data: &JudgeTrainingData) -> Result<Map<String, Value>> {
        let mut parts = Map::from_iter([(JUDGE.to_owned(), Value::Object(self.network(data).network_fields()))]);
        if let Some(autoencoder) = &data.autoencoder {
            parts.insert("autoencoder".into(), json!({"sha256": autoencoder.fingerprint()}));
        }
        if let Some(start) = &data.start {
            parts.insert(START.into(), json!({FROM: start.component.sha256()?}));
        }
        Ok(parts)
    }

    fn task(&self, data: &mut JudgeTrainingData) -> Result<(JudgeTraining, Vec<ParameterSet>)> {
        let (start, network) = (data.start.as_ref().map(|start| &start.component), self.network(data));
        let (task, set) = Component::build_from(start, |weights| {
            JudgeTraining::new(network, weights, self.common.seed, self.optimizer())
        })?;
        let test = data.test.take();
        let test = test.map(|pictures| JudgeTest { pictures, autoencoder: data.autoencoder.clone() });
        Ok((task.judged_by(test).with_record(self.account()), vec![set]))
    }

    fn check_batches(&self, data: &JudgeTrainingData) -> Result<()> {
        self.batches_of(data, None).map(drop)
    }

    fn batches(
        &self,
        data: &JudgeTrainingData,
        _: &JudgeTraining,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<JudgeBatches> {
        self.batches_of(data, self.decoded(data, preparation)?)
    }

    fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps.unwrap_or(0), ..self.common.plan() }
    }
}

impl JudgeTrainingSettings {
    fn batches_of(&self, data: &JudgeTrainingData, decoded: Option<DecodedPictures>) -> Result<JudgeBatches> {
        let (network, order) = (self.network(data), (self.common.batch_size, self.common.seed));
        JudgeBatches::new(data.train.clone(), decoded, &network.classes, self.augmentation(), order)
    }

    /// The pictures that went through the autoencoder: those in the run's folder, if they were made from the same.
    fn decoded(
        &self,
        data: &JudgeTrainingData,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<Option<DecodedPictures>> {
        let Some(autoencoder) = &data.autoencoder else { return Ok(None) };
        let (path, share, seed) = (preparation.folder.join(DECODED), self.vae_share, self.common.seed);
        let key = format!("{} {} {share} {seed}", data.fingerprint, autoencoder.fingerprint());
        if let Some(decoded) = DecodedPictures::read(&path, &key)? {
            return Ok(Some(decoded));
        }
        let indices = DecodedPictures::choose(&data.train, share, seed)?;
        let mut watch = |done, total| preparation.tell("decoding pictures", "pictures", done, total);
        let decoded = DecodedPictures::make(&data.train, indices, autoencoder.network(), &mut watch)?;
        decoded.write(&path, &key)?;
        Ok(Some(decoded))
    }

    fn augmentation(&self) -> JudgeAugmentation {
        JudgeAugmentation { shift: self.shift, blur: self.blur, noise: self.noise }
    }

    /// How the judge's parameters are moved.
    fn optimizer(&self) -> OptimizerOptions {
        let warmup_steps = self.warmup_steps.unwrap_or(0);
        let learning_rate = self.common.learning_rate(self.learning_rate, warmup_steps, self.plan().steps);
        self.common.optimizer(learning_rate, self.grad_clip, self.ema_decay.unwrap_or(0.0))
    }

    /// The network: that of the model to go on from, or one of the settings' sizes.
    fn network(&self, data: &JudgeTrainingData) -> JudgeConfig {
        data.start.as_ref().map_or_else(
            || JudgeConfig {
                sample_size: self.sample_size,
                block_out_channels: self.channels.clone(),
                summary_size: self.summary_size,
                classes: JudgeClasses::of(data.train.shown()),
                accuracy: Value::Null,
            },
            |start| start.network.clone(),
        )
    }
}
