//! What a latent diffusion model is trained for, by its scheduler's file.

use tweedie::Result;
use tweedie::config::ConfigFields;
use tweedie::denoising::PredictionType;
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::{ForwardProcess, LossWeighting, Objective};

/// The objective: what the file says, or rectified flow where it is a flow's; with min-SNR weights of a gamma, or even ones where
/// that is 0.
pub(super) fn objective(scheduler: &ConfigFields, snr_gamma: f64) -> Result<Objective> {
    let flows = scheduler.class_name().is_some_and(|class| class.starts_with("FlowMatch"));
    let (process, prediction_type) = if flows {
        let num_train_timesteps = scheduler.usize("num_train_timesteps", 1000)?;
        (ForwardProcess::Flow { num_train_timesteps }, PredictionType::Flow)
    } else {
        let kinds = [
            ("epsilon", PredictionType::Epsilon),
            ("v_prediction", PredictionType::VPrediction),
            ("sample", PredictionType::Sample),
        ];
        let kind = scheduler.choice("prediction_type", &kinds, PredictionType::Epsilon)?;
        (ForwardProcess::Diffusion(NoiseSchedule::from_config(scheduler)?), kind)
    };
    let weighting = match snr_gamma {
        0.0 => LossWeighting::Uniform,
        gamma => LossWeighting::MinSnr { gamma },
    };
    Objective::new(process, prediction_type, weighting)
}
