//! What of a request's guidance has no effect.

use super::Settings;
use tweedie::NoiseLevel;
use tweedie::denoising::GuidanceShape;
use tweedie::schedulers::Levels;

impl Settings {
    /// What the user should know of options of guidance, in a run through these levels.
    pub(super) fn guidance_warnings(&self, levels: &Levels) -> Vec<String> {
        let request = &self.request;
        if self.guided() {
            let (low, high) = request.guidance_interval.unwrap_or((0.0, f64::INFINITY));
            let noise = |level: NoiseLevel| level.sigma / level.alpha;
            // Of several evaluations of a step some are anywhere between its ends.
            let least = |i: usize| match self.scheduler.entry.evaluations {
                1 => noise(levels.from(i)),
                _ => noise(levels.to(i)),
            };
            let acts = |i: usize| least(i) <= high && noise(levels.from(i)) >= low;
            let nowhere = format!(
                "no step of the run is within `guidance_interval` {low},{high}, so there is no guidance at all; the levels \
                 where steps start are sigma / alpha"
            );
            return if (self.start()..levels.len()).any(acts) { Vec::new() } else { vec![nowhere] };
        }
        let given = [
            ("`guidance_interval`", request.guidance_interval.is_some()),
            ("`guidance_schedule`", request.guidance_schedule != GuidanceShape::Constant),
            ("`guidance_rescale`", request.guidance_rescale.is_some_and(|share| share > 0.0)),
            ("`apg`", request.apg.is_some()),
            ("`negative_prompt`", request.negative_prompt.as_ref().is_some_and(|text| !text.is_empty())),
        ];
        let names: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let why = match self.guidance_is_embedded {
            true => "the network takes the guidance scale as an input, and has one branch",
            false => "there is no guidance at a `guidance_scale` of 1 or less",
        };
        let has = if names.len() == 1 { "has" } else { "have" };
        vec![format!("{} {has} no effect: {why}", names.join(", "))]
    }
}
