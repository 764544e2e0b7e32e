//! What a file with a whole model says of what its network predicts: in tensors that are marks, in its metadata, and in the
//! settings beside it.

use crate::checkpoints::TensorFile;
use crate::schedulers::USUAL_SIGMAS;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;

/// A tensor without values by which files say that their network predicts v.
const V: &str = "v_pred";
/// A tensor without values by which they say that it was trained with zero terminal signal.
const ZERO_TERMINAL_SNR: &str = "ztsnr";
/// Tensors of one number by which they say that it predicts v inside EDM's preconditioning, and for which levels of noise.
const EDM_SIGMA_MAX: &str = "edm_vpred.sigma_max";
const EDM_SIGMA_MIN: &str = "edm_vpred.sigma_min";

/// The levels of noise where a file names only the other end.
const USUAL_EDM_SIGMAS: (f64, f64) = (0.002, 120.0);

/// What metadata say in words, under the names of the specification that Stability AI published.
const WORDS: [&str; 2] = ["modelspec.prediction_type", "modelspec.predict_key"];
/// The kind of model in the same specification, which tells it of 2.x.
const ARCHITECTURE: &str = "modelspec.architecture";

/// Bytes of the longest settings that are read; real ones have some thousand.
const LONGEST_SETTINGS: u64 = 1 << 20;

/// What a network predicts, of the kinds that files with whole models can say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum FilePrediction {
    /// The noise.
    #[default]
    Epsilon,
    /// v (Salimans and Ho 2022).
    V,
    /// v, inside EDM's preconditioning (Karras et al. 2022, table 1) for data of unit variance.
    EdmV {
        /// The least noise that it was trained on.
        sigma_min: f64,
        /// The most.
        sigma_max: f64,
    },
}

impl FilePrediction {
    /// As a scheduler's file has it.
    pub fn name(&self) -> &'static str {
        if self.is_v() { "v_prediction" } else { "epsilon" }
    }

    /// Whether it is v, in whatever preconditioning.
    pub fn is_v(&self) -> bool {
        *self != Self::Epsilon
    }

    /// What words in metadata and settings mean.
    fn of_word(word: &str) -> Option<Self> {
        match word.to_lowercase().replace(['-', ' '], "_").as_str() {
            "epsilon" | "eps" | "noise" => Some(Self::Epsilon),
            "v" | "v_prediction" | "v_pred" | "vpred" | "velocity" => Some(Self::V),
            _ => None,
        }
    }
}

/// What is known of what a file's network predicts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PredictionOfFile {
    /// What it is taken to be.
    pub kind: FilePrediction,
    /// Whether the file says that it was trained with zero terminal signal.
    pub zero_terminal_snr: bool,
    /// Where the file says what it predicts; nothing if it does not.
    pub said_in: Option<String>,
    /// Whether it is a guess, where nothing says it and models of the family differ.
    pub is_guessed: bool,
    /// What else it says, if that is something else or not known.
    pub conflict: Option<String>,
}

impl PredictionOfFile {
    /// What follows for the scheduler's file, in place of what that has; nothing for networks that predict the noise, as that
    /// file has them.
    pub fn scheduler_fields(&self) -> Map<String, Value> {
        if !self.kind.is_v() {
            return Map::new();
        }
        let mut fields = Map::from_iter([("prediction_type".to_owned(), self.kind.name().into())]);
        let more = match self.kind {
            FilePrediction::EdmV { sigma_min, sigma_max } => json!({
                "_class_name": "EDMEulerScheduler", "sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": 1.0,
                "sigma_schedule": "exponential", "timestep_type": "continuous",
            }),
            FilePrediction::V if self.zero_terminal_snr => json!({
                // PNDM cannot be at a level without signal.
                "_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing",
            }),
            _ => Value::Null,
        };
        fields.extend(more.as_object().cloned().unwrap_or_default());
        fields
    }
}

/// The marks of a file whose scheduler has these fields: names of tensors, and the number in each that is not empty.
pub(super) fn marks(fields: &Map<String, Value>) -> Vec<(&'static str, Option<f64>)> {
    let field = |name: &str| fields.get(name).unwrap_or(&Value::Null);
    if field("prediction_type") != "v_prediction" {
        return Vec::new();
    }
    if field("_class_name").as_str().is_some_and(|class| class.starts_with("EDM")) {
        // The marks are for data of unit variance, which is not what a scheduler's file means by default.
        if field("sigma_data").as_f64() != Some(1.0) {
            return Vec::new();
        }
        let (sigma_min, sigma_max) = USUAL_SIGMAS;
        let sigma = |name: &str, usual: f64| Some(field(name).as_f64().unwrap_or(usual));
        return vec![(EDM_SIGMA_MAX, sigma("sigma_max", sigma_max)), (EDM_SIGMA_MIN, sigma("sigma_min", sigma_min))];
    }
    let zero = (field("rescale_betas_zero_snr") == true).then_some((ZERO_TERMINAL_SNR, None));
    [(V, None)].into_iter().chain(zero).collect()
}

/// What a file says: the settings that somebody put beside it go before marks, and those before metadata.
///
/// # Errors
/// If its levels of noise cannot be used.
pub(super) fn said_by(file: &TensorFile) -> Result<PredictionOfFile> {
    let mut said = Said::default();
    let (settings, name) = settings_beside(file.path());
    for word in settings_words(&settings) {
        said.word(&name, word);
    }
    let tensors = file.tensors();
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    let number = |name: &str| find(name).map(|tensor| file.scalar(tensor)).transpose();
    let (max, min) = (number(EDM_SIGMA_MAX)?, number(EDM_SIGMA_MIN)?);
    if max.is_some() || min.is_some() {
        let (sigma_min, sigma_max) = (min.unwrap_or(USUAL_EDM_SIGMAS.0), max.unwrap_or(USUAL_EDM_SIGMAS.1));
        if !(sigma_min > 0.0 && sigma_max > sigma_min) {
            let reason = format!(
                "its {EDM_SIGMA_MIN} is {sigma_min} and its {EDM_SIGMA_MAX} {sigma_max}; the first must be above 0 and below the other"
            );
            return Err(Error::malformed(ErrorKind::Model, "file of weights", file.path(), reason));
        }
        said.claims.push((FilePrediction::EdmV { sigma_min, sigma_max }, EDM_SIGMA_MAX.into()));
    }
    if find(V).is_some() {
        said.claims.push((FilePrediction::V, V.into()));
    }
    for name in WORDS {
        if let Some(word) = file.metadata(name).filter(|word| !word.trim().is_empty()) {
            said.word(name, word.trim());
        }
    }
    match file.metadata(ARCHITECTURE).map(|name| name.split('/').next().unwrap_or(name)) {
        Some("stable-diffusion-v2-768-v") => said.claims.push((FilePrediction::V, ARCHITECTURE.into())),
        Some("stable-diffusion-v2-512") => said.claims.push((FilePrediction::Epsilon, ARCHITECTURE.into())),
        _ => {}
    }
    Ok(said.settle(find(ZERO_TERMINAL_SNR).is_some()))
}

/// All that a file says, the weightiest first.
#[derive(Default)]
struct Said {
    /// What is said, and where.
    claims: Vec<(FilePrediction, String)>,
    /// Words that are not known, with their places.
    unknown: Vec<String>,
}

impl Said {
    fn word(&mut self, place: &str, word: &str) {
        match FilePrediction::of_word(word) {
            Some(prediction) => self.claims.push((prediction, place.into())),
            None => self.unknown.push(format!("{word:?} in {place}")),
        }
    }

    fn settle(self, zero_terminal_snr: bool) -> PredictionOfFile {
        let (kind, said_in) = self.claims.first().cloned().unzip();
        let kind = kind.unwrap_or_default();
        // Who says v need not know in what preconditioning.
        let of_edm =
            self.claims.iter().map(|(claim, _)| *claim).find(|claim| matches!(claim, FilePrediction::EdmV { .. }));
        let kind = of_edm.filter(|_| kind.is_v()).unwrap_or(kind);
        let agrees = self.claims.iter().all(|(other, _)| other.is_v() == kind.is_v());
        let conflict = (!agrees || !self.unknown.is_empty()).then(|| {
            let claims = self.claims.iter().map(|(claim, place)| format!("{} in {place}", claim.name()));
            let all: Vec<String> = claims.chain(self.unknown).collect();
            let what = if agrees { "something that is not known" } else { "different things" };
            format!(
                "the model's file says {what} of what its network predicts: {}; {} is taken, and `prediction_type` overrides it",
                all.join(", "),
                kind.name()
            )
        });
        let zero_terminal_snr = kind == FilePrediction::V && zero_terminal_snr;
        PredictionOfFile { kind, zero_terminal_snr, said_in, is_guessed: false, conflict }
    }
}

/// The text of the settings of the same name beside a file, as the code base of Stable Diffusion and A1111's web UI have
/// them, and their name; empty if there are none.
fn settings_beside(file: &Path) -> (String, String) {
    for ending in ["yaml", "yml"] {
        let path = file.with_extension(ending);
        let mut text = Vec::new();
        let read = std::fs::File::open(&path).and_then(|file| file.take(LONGEST_SETTINGS).read_to_end(&mut text));
        if read.is_ok() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return (String::from_utf8_lossy(&text).into_owned(), name);
        }
    }
    Default::default()
}

/// What settings say of the prediction: `parameterization`, or the class by which the code base of XL scales outputs. A model
/// of the older code base that does not say it predicts the noise.
fn settings_words(settings: &str) -> Vec<&str> {
    let lines = || settings.lines().map(|line| line.split_once('#').map_or(line, |(before, _)| before));
    let value = |line: &'_ str, key: &str| -> Option<(usize, usize)> {
        let start = line.find(key)? + key.len();
        let rest = line[start..].trim_start();
        let rest = rest.strip_prefix(['"', '\'']).unwrap_or(rest).trim_start();
        let rest = rest.strip_prefix(':')?.trim_start_matches([' ', '\t', '"', '\'']);
        let from = line.len() - rest.len();
        let length = rest.find(['"', '\'', ',', '}', ' ', '\t', '\r']).unwrap_or(rest.len());
        (length > 0).then_some((from, from + length))
    };
    let values = |key: &'static str| lines().filter_map(move |line| value(line, key).map(|(from, to)| &line[from..to]));
    let mut words: Vec<&str> = values("parameterization").collect();
    if words.is_empty() {
        let scalings =
            values("target").filter_map(|class| class.rsplit_once("denoiser_scaling.").map(|(_, class)| class));
        words.extend(scalings.map(|class| match class {
            "EpsScaling" => "epsilon",
            "VScaling" => "v",
            other => other,
        }));
    }
    if words.is_empty() && values("target").any(|class| class.contains("diffusion.ddpm.Latent")) {
        words.push("epsilon");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_what_is_predicted() {
        let v = "model:\n  base_learning_rate: 1.0e-4\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    \
                 parameterization: \"v\"  # not eps\n";
        assert_eq!(settings_words(v), ["v"]);
        assert_eq!(settings_words(&v.replace("    parameterization", "    # parameterization")), ["epsilon"]);
        assert_eq!(settings_words("model: {params: {'parameterization': 'eps', x: 1}}"), ["eps"]);
        let scaling = "denoiser_config:\n  params:\n    scaling_config:\n      target: sgm.modules.diffusionmodules.denoiser_scaling";
        assert_eq!(settings_words(&format!("{scaling}.VScaling\n")), ["v"]);
        assert_eq!(settings_words(&format!("{scaling}.EpsScaling\n")), ["epsilon"]);
        assert_eq!(settings_words(&format!("{scaling}.EDMScaling\n")), ["EDMScaling"]);
        assert_eq!(settings_words("# nothing\nmodel:\n  target: mine\n"), Vec::<&str>::new());
    }

    #[test]
    fn what_is_said_first_is_taken_and_what_differs_is_told() {
        let said = |words: &[(&str, &str)]| {
            let mut said = Said::default();
            words.iter().for_each(|(place, word)| said.word(place, word));
            said.settle(true)
        };
        let alone = said(&[("here", "v"), ("there", "V-prediction")]);
        assert_eq!((alone.kind, alone.conflict, alone.zero_terminal_snr), (FilePrediction::V, None, true));
        let differs = said(&[("here", "eps"), ("there", "v")]);
        assert_eq!((differs.kind, differs.zero_terminal_snr), (FilePrediction::Epsilon, false));
        assert!(
            differs.conflict.is_some_and(|text| text.contains("v_prediction in there") && text.contains("in here"))
        );
        let strange = said(&[("here", "flow")]);
        assert_eq!(strange.said_in, None);
        assert!(strange.conflict.is_some_and(|text| text.contains("\"flow\" in here")));
        assert!(said(&[]).scheduler_fields().is_empty());
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        for kind in [FilePrediction::V, FilePrediction::EdmV { sigma_min: 0.01, sigma_max: 90.0 }] {
            for zero_terminal_snr in [false, kind == FilePrediction::V] {
                let said_in = Some("here".to_owned());
                let prediction = PredictionOfFile { kind, zero_terminal_snr, said_in, ..PredictionOfFile::default() };
                let marks = marks(&prediction.scheduler_fields());
                let expected = match kind {
                    FilePrediction::EdmV { .. } => vec![(EDM_SIGMA_MAX, Some(90.0)), (EDM_SIGMA_MIN, Some(0.01))],
                    _ if zero_terminal_snr => vec![(V, None), (ZERO_TERMINAL_SNR, None)],
                    _ => vec![(V, None)],
                };
                assert_eq!(marks, expected);
            }
        }
        assert!(marks(&Map::new()).is_empty());
    }
}
