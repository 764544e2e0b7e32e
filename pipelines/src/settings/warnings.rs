//! What of a request has no effect, or not the one that is meant: it is done all the same, and told.
//!
//! Prompts are read by the stage that encodes them, which tells what it does not find in them.

use super::Settings;
use crate::native_size::NativeSize;
use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::{InpaintRequest, MaskFill};
use serde_json::Value;
use tweedie::NoiseLevel;
use tweedie::config::ConfigFields;
use tweedie::denoising::{GuidanceShape, Limit, Parameterization, ReuseSchedule};
use tweedie::images::Mask;
use tweedie::schedulers::{Levels, SchedulerChoice};

/// From this guidance scale on pictures are mostly saturated colours.
const BURNING_SCALE: f64 = 30.0;

/// How many times as large and as long as those that it was made for a model's pictures may be before it draws things twice:
/// Stable Diffusion 1.5, of 512x512, still draws 768x768 and 768x512.
const MUCH_LARGER: f64 = 1.5;
const MUCH_LONGER: f64 = 1.75;
/// And how many times as small, and as short.
const MUCH_SMALLER: f64 = 0.6;
const MUCH_SHORTER: f64 = 0.5;

/// The share of grey pixels from which a mask is rather a photo: soft edges have fewer.
const MOSTLY_GREY: f64 = 0.3;

impl Settings {
    /// What the user should know of a run through these levels, of a model for pictures of that size.
    pub(super) fn doubts(&self, native: NativeSize, levels: &Levels) -> Vec<String> {
        let burning = burning(self.guidance_scale, "5 to 12").filter(|_| self.guided());
        let idle = self.idle_guidance(levels).into_iter().chain(self.idle_fast(levels));
        self.unsuited_size(native).into_iter().chain(burning).chain(idle).collect()
    }

    /// That the model was not made for pictures of the size that it works at.
    fn unsuited_size(&self, native: NativeSize) -> Option<String> {
        let share = |side: usize, native: usize| side as f64 / native.max(1) as f64;
        let (wide, high) = (share(self.width, native.width), share(self.height, native.height));
        let size = (wide * high).sqrt();
        let (how, what) = if size > MUCH_LARGER || wide.max(high) >= MUCH_LONGER {
            let what = "enlarge it (`scale`), or draw over the enlarged one by img2img with a `strength` of 0.3 to 0.5";
            ("draws things twice or in pieces", what)
        } else if size < MUCH_SMALLER || wide.min(high) <= MUCH_SHORTER {
            ("has too little room, and draws stains", "make it smaller")
        } else {
            return None;
        };
        Some(format!(
            "the model is made for pictures of {}x{}; at {}x{} it mostly {how}. Leave `width` and `height` away to get one of its \
             own size, and {what}",
            native.width, native.height, self.width, self.height
        ))
    }

    /// That no step can be skipped.
    fn idle_fast(&self, levels: &Levels) -> Option<String> {
        let steps = levels.len() - self.start();
        let acts = ReuseSchedule::acts_in(steps * self.scheduler.entry.evaluations);
        (self.request.fast.is_some() && !acts && self.task.unchanged().is_none()).then(|| {
            format!(
                "`fast` has no effect on so few steps ({steps}), of which each one matters; it is meant for 20 and more"
            )
        })
    }

    /// That options of guidance have no effect.
    fn idle_guidance(&self, levels: &Levels) -> Vec<String> {
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
            let is_asked = request.guidance_interval.is_some() && self.task.unchanged().is_none();
            return if !is_asked || (self.start()..levels.len()).any(acts) { Vec::new() } else { vec![nowhere] };
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

/// That guidance is stronger than pictures bear; so much is `usual`.
pub(crate) fn burning(scale: f64, usual: &str) -> Option<String> {
    (scale >= BURNING_SCALE)
        .then(|| format!("a `guidance_scale` of {scale} mostly gives saturated colours; {usual} are usual"))
}

/// That a scheduler cuts predicted latents, as is meant for pixels; its file says so, or the class does where the file is silent.
pub(super) fn clipped_latents(choice: &SchedulerChoice, parameterization: &Parameterization) -> Option<String> {
    let Limit::Clip { range } = parameterization.limit else { return None };
    Some(format!(
        "the scheduler {} cuts predicted latents to {range}, as is meant for pixels: colours will be poor; set clip_sample to false in \
         the model's scheduler/scheduler_config.json",
        choice.name()
    ))
}

/// Whether a class is one of EDM's schedulers, which tell networks their own levels of noise.
pub(super) fn is_edm(class: &str) -> bool {
    class.starts_with("EDM")
}

/// That a scheduler tells a network levels of noise that it was not trained on.
pub(crate) fn unsuited_scheduler(
    choice: &SchedulerChoice,
    file: &ConfigFields,
    config: &ConfigFields,
) -> Option<String> {
    let text = |config: &ConfigFields, name: &str| config.fields().get(name).and_then(Value::as_str).map(str::to_owned);
    let is_flow = |class: &str| class.starts_with("FlowMatch");
    let (class, of_file) = (choice.entry.class_name, file.class_name().unwrap_or_default());
    let prediction = text(config, "prediction_type").unwrap_or_else(|| "epsilon".into());
    let predicts_flow = is_flow(of_file) || prediction == "flow_prediction";
    let for_flow = is_flow(class) || config.fields().get("use_flow_sigmas") == Some(&Value::Bool(true));
    let name = choice.name();
    if for_flow && !predicts_flow {
        return Some(format!(
            "the scheduler {name} is for models of rectified flow, and this one predicts {prediction}: pictures will be noise; \
             take `scheduler` euler"
        ));
    }
    if predicts_flow && !for_flow {
        return Some(format!(
            "the model is one of rectified flow, which the scheduler {name} does not know: pictures will be noise; take \
             `scheduler` flow-euler"
        ));
    }
    (is_edm(class) && !is_edm(of_file)).then(|| {
        format!(
            "the scheduler {name} tells the network EDM's levels of noise, on which this one was not trained: pictures will be \
             noise; take `scheduler` euler or heun"
        )
    })
}

impl ImageToImageRequest {
    /// What the user should know of the picture.
    pub(super) fn doubts(&self) -> Vec<String> {
        let transparent = self.image.is_transparent_somewhere();
        let text = "the picture has transparent pixels, which are seen in the colours that its file gives them; put it on a \
                    background first if that is not meant";
        transparent.then(|| text.to_owned()).into_iter().collect()
    }
}

impl InpaintRequest {
    /// What the user should know of the mask and of what is done with it at a strength.
    pub(super) fn doubts(&self, strength: f64) -> Vec<String> {
        let options = &self.inpaint;
        let idle = options.jump_length.is_some() && options.resample.is_none_or(|times| times <= 1);
        let idle = idle.then(|| "`jump_length` has no effect without `resample`, whose jumps it is about".to_owned());
        let grey = self.mask.as_ref().map_or(0.0, share_of_grey);
        let photo = (grey > MOSTLY_GREY).then(|| {
            format!(
                "{:.0} % of the mask is neither black nor white; what is lighter than half grey is repainted. If it is a photo, \
                 draw a mask: white where to repaint, black elsewhere",
                100.0 * grey
            )
        });
        let forgotten = options.mask_fill != MaskFill::Original && strength == 1.0;
        let forgotten = forgotten.then(|| {
            "`mask_fill` has no effect at a `strength` of 1, which starts from noise alone; give one of 0.6 to 0.9"
                .to_owned()
        });
        idle.into_iter().chain(photo).chain(forgotten).collect()
    }
}

/// How much of a mask is neither nearly black nor nearly white; nothing of one that has the same grey all over.
fn share_of_grey(mask: &Mask) -> f64 {
    let values = mask.values();
    let grey = values.iter().filter(|value| (32..224).contains(*value)).count();
    let even = values.iter().all(|value| value == &values[0]);
    if even { 0.0 } else { grey as f64 / values.len() as f64 }
}
