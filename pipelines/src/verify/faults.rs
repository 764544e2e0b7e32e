//! Faults of earlier versions that pictures show.

use crate::records::provenance::Provenance;
use crate::settings::Settings;
use tweedie::Result;
use tweedie::denoising::GuidanceShape;

/// What the version that wrote the record did otherwise than it says, as far as that is known.
///
/// # Errors
/// If the scheduler cannot be built.
pub(super) fn of(provenance: &Provenance, settings: &Settings) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    if provenance.record >= 2 {
        return Ok(faults);
    }
    let options = [
        ("guidance_interval", settings.request.guidance_interval.is_some()),
        ("guidance_schedule", settings.request.guidance_schedule != GuidanceShape::Constant),
    ];
    // Guidance found noise levels by training timesteps, which these schedulers have none of.
    if settings.guided() && settings.build_scheduler()?.schedule().is_none() {
        let recorded = options.into_iter().filter(|(_, recorded)| *recorded);
        faults.extend(
            recorded.map(|(name, _)| format!("{name} was recorded but not applied by the version that made it")),
        );
    }
    if !provenance.loras.is_empty() && provenance.dtype != "bf16" {
        faults.push(
            "where a machine multiplies bf16, the version that made it rounded weights with a LoRA to bf16 unasked"
                .into(),
        );
    }
    Ok(faults)
}
