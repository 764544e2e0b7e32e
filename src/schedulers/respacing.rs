//! Where the noise levels of a run lie between its ends.

use super::beta_distribution::beta_quantile;
use crate::Result;
use crate::config::ConfigFields;

/// A rule that replaces the sigmas of the chosen timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Respacing {
    /// Even in `sigma^(1/7)` (Karras et al. 2022, equation 5).
    Karras,
    /// Even in `ln sigma`.
    Exponential,
    /// The quantiles of Beta(0.6, 0.6) at even probabilities (Lee et al. 2024, "Beta sampling is all you need").
    Beta,
    /// Even in the half log-SNR (Lu et al. 2022), which is even in `ln sigma`; timesteps are rounded.
    Lu,
    /// A table found by optimisation (Sabour et al. 2024, "Align your steps"), log-linear between its entries.
    AlignYourSteps(AlignedModel),
}

/// The model whose table of Align Your Steps is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlignedModel {
    /// Stable Diffusion 1.5.
    StableDiffusion,
    /// SDXL.
    StableDiffusionXl,
    /// Stable Video Diffusion.
    StableVideoDiffusion,
}

const ALIGNED_MODELS: [(&str, AlignedModel); 3] = [
    ("StableDiffusion", AlignedModel::StableDiffusion),
    ("StableDiffusionXL", AlignedModel::StableDiffusionXl),
    ("StableDiffusionVideo", AlignedModel::StableVideoDiffusion),
];

/// The exponent of Karras et al. (2022).
const KARRAS_RHO: f64 = 7.0;
/// Both parameters of the Beta distribution.
const BETA_SHAPE: f64 = 0.6;

impl AlignedModel {
    /// The published levels of ten steps and their end.
    fn sigmas(self) -> [f64; 11] {
        match self {
            Self::StableDiffusion => [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
            Self::StableDiffusionXl => [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
            Self::StableVideoDiffusion => [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
        }
    }
}

/// Where a scheduler's file says that respaced sigmas start and end: `sigma_max` and `sigma_min`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StatedEnds {
    /// The largest sigma, above 0.
    pub largest: Option<f64>,
    /// The smallest one, above 0.
    pub smallest: Option<f64>,
}

impl StatedEnds {
    /// What the file states.
    ///
    /// # Errors
    /// If an end is no number above 0.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        let positive = |field| match config.optional_f64(field)? {
            Some(sigma) if sigma <= 0.0 => Err(config.wrong(field, "it is a sigma and must be above 0")),
            sigma => Ok(sigma),
        };
        Ok(Self { largest: positive("sigma_max")?, smallest: positive("sigma_min")? })
    }

    /// The stated ends, or these: the largest and the smallest.
    pub(super) fn or(self, largest: f64, smallest: f64) -> (f64, f64) {
        (self.largest.unwrap_or(largest), self.smallest.unwrap_or(smallest))
    }
}

impl Respacing {
    /// The rule that a scheduler's file asks for: `use_karras_sigmas`, `use_exponential_sigmas`,
    /// `use_beta_sigmas`; `use_lu_lambdas` if the class has it. `align_your_steps` is Tweedie's own and names
    /// a model's table.
    ///
    /// # Errors
    /// If more than one is asked for.
    pub fn from_config(config: &ConfigFields, has_lu_lambdas: bool) -> Result<Option<Self>> {
        let mut chosen: Option<(&str, Self)> = None;
        let flags = [
            ("use_karras_sigmas", Self::Karras),
            ("use_lu_lambdas", Self::Lu),
            ("use_exponential_sigmas", Self::Exponential),
            ("use_beta_sigmas", Self::Beta),
        ];
        for (field, respacing) in flags {
            if (field != "use_lu_lambdas" || has_lu_lambdas) && config.bool(field, false)? {
                if let Some((other, _)) = chosen {
                    return Err(config.wrong(field, format!("`{other}` is true as well; set one of them to false")));
                }
                chosen = Some((field, respacing));
            }
        }
        let models = ALIGNED_MODELS.map(|(name, model)| (name, Some(model)));
        let aligned = config.choice("align_your_steps", &models, None)?;
        match (aligned, chosen) {
            (Some(_), Some((field, _))) => {
                Err(config.wrong("align_your_steps", format!("`{field}` is true as well; use one of them")))
            }
            (Some(model), None) => Ok(Some(Self::AlignYourSteps(model))),
            (None, chosen) => Ok(chosen.map(|(_, respacing)| respacing)),
        }
    }

    /// The sigmas of `steps` steps from `largest` to `smallest`, both included; the level after the last step
    /// is not among them. A table has its own ends.
    pub fn sigmas(self, largest: f64, smallest: f64, steps: usize) -> Vec<f64> {
        let ramp = (0..steps).map(|i| i as f64 / (steps - 1).max(1) as f64);
        match self {
            Self::Karras => {
                let (top, bottom) = (largest.powf(1.0 / KARRAS_RHO), smallest.powf(1.0 / KARRAS_RHO));
                ramp.map(|r| (top + r * (bottom - top)).powf(KARRAS_RHO)).collect()
            }
            Self::Exponential | Self::Lu => {
                let (top, bottom) = (largest.ln(), smallest.ln());
                ramp.map(|r| (top + r * (bottom - top)).exp()).collect()
            }
            Self::Beta => {
                let quantile = |r: f64| beta_quantile(1.0 - r, BETA_SHAPE, BETA_SHAPE);
                ramp.map(|r| smallest + quantile(r) * (largest - smallest)).collect()
            }
            Self::AlignYourSteps(model) => {
                let table = model.sigmas();
                let last = table.len() - 1;
                let at = |position: f64| {
                    let below = (position.floor() as usize).min(last - 1);
                    let (from, to) = (table[below].ln(), table[below + 1].ln());
                    (from + (position - below as f64) * (to - from)).exp()
                };
                (0..steps).map(|i| at(i as f64 * last as f64 / steps as f64)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_falls_between_its_ends() {
        let rules = [Respacing::Karras, Respacing::Exponential, Respacing::Beta, Respacing::Lu];
        for rule in rules {
            for steps in [2, 3, 10, 50] {
                let sigmas = rule.sigmas(14.6, 0.03, steps);
                assert_eq!(sigmas.len(), steps);
                assert!((sigmas[0] - 14.6).abs() < 1e-12 && (sigmas[steps - 1] - 0.03).abs() < 1e-12, "{rule:?}");
                assert!(sigmas.windows(2).all(|w| w[0] > w[1]), "{rule:?} {steps}");
            }
        }
        assert_eq!(Respacing::Karras.sigmas(14.6, 0.03, 1).len(), 1);
    }

    /// Even in the transformed variable is what each rule means.
    #[test]
    fn even_in_their_own_variable() {
        let even = |values: Vec<f64>| values.windows(3).all(|w| (w[0] - 2.0 * w[1] + w[2]).abs() < 1e-12);
        let sigmas = |rule: Respacing| rule.sigmas(80.0, 0.002, 9).into_iter();
        assert!(even(sigmas(Respacing::Karras).map(|s| s.powf(1.0 / 7.0)).collect()));
        assert!(even(sigmas(Respacing::Exponential).map(f64::ln).collect()));
    }

    #[test]
    fn aligned_tables_are_their_own_at_ten_steps() {
        let model = AlignedModel::StableDiffusion;
        let sigmas = Respacing::AlignYourSteps(model).sigmas(1.0, 0.1, 10);
        assert!(sigmas.iter().zip(model.sigmas()).all(|(a, b)| (a - b).abs() < 1e-12));
        let finer = Respacing::AlignYourSteps(model).sigmas(1.0, 0.1, 20);
        assert!((finer[1] - (14.615f64 * 6.475).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn two_rules_at_once_are_refused() {
        let config = ConfigFields::from_fields("scheduler", serde_json::Map::new()).with("use_karras_sigmas", true);
        assert_eq!(Respacing::from_config(&config, false).ok().flatten(), Some(Respacing::Karras));
        assert!(Respacing::from_config(&config.clone().with("use_beta_sigmas", true), false).is_err());
        let lu = config.clone().with("use_lu_lambdas", true);
        assert!(Respacing::from_config(&lu, false).is_ok() && Respacing::from_config(&lu, true).is_err());
        assert!(Respacing::from_config(&config.with("align_your_steps", "StableDiffusion"), false).is_err());
    }
}
