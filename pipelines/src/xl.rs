//! What Stable Diffusion XL is told beside one prompt: a second one, and the sizes of the pictures that it was trained
//! on (Podell et al. 2023, sections 2.2 and 2.3).

use crate::requests::text_to_image::TextToImageRequest;
use crate::requests::xl::{NegativeSizeRequest, Pixels, SizeRequest, XlRequest};
use crate::task::Task;
use tweedie::families::XlFacts;
use tweedie::{Error, Result};

/// No size that the model is told is larger.
const LARGEST: usize = 1 << 20;

/// The score that the refiner is told of the picture it should make, and of the one it should stay away from.
const AESTHETIC_SCORES: [f32; 2] = [6.0, 2.5];

/// What a settled request says for a model of this family.
#[derive(Debug, Clone, PartialEq)]
pub struct XlSettings {
    /// What the second text encoder reads.
    pub prompt_2: String,
    /// What it reads for the negative prompt.
    pub negative_prompt_2: String,
    /// Whether the negative conditioning is zeros.
    pub zero_negative: bool,
    /// Sizes of the picture that is wanted.
    pub sizes: Sizes,
    /// Sizes of the picture to stay away from.
    pub negative_sizes: Sizes,
}

/// What the network is told of sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Height and width before a training picture was made smaller.
    pub original: Pixels,
    /// Where it was cut.
    pub crop_top_left: Pixels,
    /// What it became.
    pub last: LastSize,
}

/// The end of [`Sizes`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LastSize {
    /// Height and width that are aimed at.
    Target(Pixels),
    /// The refiner's: how well people like the picture.
    AestheticScore(f32),
}

impl Sizes {
    /// The numbers that the network embeds, in its order.
    pub fn time_ids(&self) -> Vec<f32> {
        let Self { original, crop_top_left, last } = *self;
        let mut ids = [original, crop_top_left].map(|(y, x)| [y as f32, x as f32]).concat();
        match last {
            LastSize::Target((height, width)) => ids.extend([height as f32, width as f32]),
            LastSize::AestheticScore(score) => ids.push(score),
        }
        ids
    }
}

impl XlSettings {
    /// The request that says all this whatever a model's defaults are.
    pub(crate) fn request(&self) -> XlRequest {
        let last = |sizes: &Sizes| match sizes.last {
            LastSize::Target(target) => (Some(target), None),
            LastSize::AestheticScore(score) => (None, Some(f64::from(score))),
        };
        let Self { sizes, negative_sizes: negative, .. } = self;
        let ((target, aesthetic_score), (negative_target, negative_score)) = (last(sizes), last(negative));
        XlRequest {
            prompt_2: Some(self.prompt_2.clone()),
            negative_prompt_2: Some(self.negative_prompt_2.clone()),
            sizes: SizeRequest {
                original: Some(sizes.original),
                target,
                crop_top_left: Some(sizes.crop_top_left),
                aesthetic_score,
            },
            negative_sizes: NegativeSizeRequest {
                original: Some(negative.original),
                target: negative_target,
                crop_top_left: Some(negative.crop_top_left),
                aesthetic_score: negative_score,
            },
        }
    }
}

impl TextToImageRequest {
    /// The part of a request that concerns this family, with diffusers' defaults filled in for a picture of
    /// `height` and `width`; warnings are added.
    pub(crate) fn settle_xl(
        &self,
        facts: Option<XlFacts>,
        task: &Task,
        picture: Pixels,
        warnings: &mut Vec<String>,
    ) -> Result<Option<XlSettings>> {
        let Some(facts) = facts else {
            if self.xl != XlRequest::default() {
                warnings.push("this model is no Stable Diffusion XL: second prompts and sizes have no effect".into());
            }
            return Ok(None);
        };
        let XlRequest { prompt_2, negative_prompt_2, sizes, negative_sizes } = &self.xl;
        check([sizes.original, sizes.target], sizes.crop_top_left, sizes.aesthetic_score)?;
        let negative = negative_sizes;
        check([negative.original, negative.target], negative.crop_top_left, negative.aesthetic_score)?;
        let zero_negative = self.negative_prompt.is_none() && facts.zeros_for_no_prompt;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if zero_negative && given(negative_prompt_2).is_some() {
            warnings
                .push("the second negative prompt has no effect without a first; give `negative_prompt` too".into());
        }
        Ok(Some(XlSettings {
            prompt_2: given(prompt_2).unwrap_or_else(|| self.prompt.clone()),
            negative_prompt_2: given(negative_prompt_2).or(self.negative_prompt.clone()).unwrap_or_default(),
            zero_negative,
            sizes: sizes.settle(facts.scored, picture),
            negative_sizes: negative.settle(sizes, facts.scored, task, picture),
        }))
    }
}

/// Whether sizes are such as a picture may have.
fn check(sizes: [Option<Pixels>; 2], corner: Option<Pixels>, score: Option<f64>) -> Result<()> {
    for (what, size) in ["the original size", "the target size"].into_iter().zip(sizes) {
        if let Some((height, width)) = size
            && (height == 0 || width == 0 || height > LARGEST || width > LARGEST)
        {
            let fix = format!("give height and width from 1 to {LARGEST}, such as 1024x1024");
            return Err(Error::invalid(what, format!("{height}x{width}"), fix));
        }
    }
    if let Some((y, x)) = corner.filter(|&(y, x)| y.max(x) > LARGEST) {
        return Err(Error::invalid("the crop's corner", format!("{y},{x}"), format!("take 0 to {LARGEST}")));
    }
    match score.filter(|score| !(0.0..=10.0).contains(score)) {
        Some(score) => Err(Error::invalid("the aesthetic score", score, "take a number from 0 to 10")),
        None => Ok(()),
    }
}

impl SizeRequest {
    fn settle(&self, scored: bool, picture: Pixels) -> Sizes {
        Sizes {
            original: self.original.unwrap_or(picture),
            crop_top_left: self.crop_top_left.unwrap_or((0, 0)),
            last: match scored {
                true => {
                    LastSize::AestheticScore(self.aesthetic_score.map_or(AESTHETIC_SCORES[0], |score| score as f32))
                }
                false => LastSize::Target(self.target.unwrap_or(picture)),
            },
        }
    }
}

impl NegativeSizeRequest {
    /// As diffusers fills in what is not stated, where its pipelines differ: from a text, the negative sizes count
    /// if both are stated and are those of the prompt otherwise; from a picture, each that is not stated is the
    /// prompt's, and the corner is always the prompt's unless there is a score.
    fn settle(&self, positive: &SizeRequest, scored: bool, task: &Task, picture: Pixels) -> Sizes {
        let of_prompt = positive.settle(scored, picture);
        let last = match of_prompt.last {
            LastSize::AestheticScore(_) => {
                LastSize::AestheticScore(self.aesthetic_score.map_or(AESTHETIC_SCORES[1], |score| score as f32))
            }
            LastSize::Target(target) => LastSize::Target(self.target.unwrap_or(target)),
        };
        let own_corner = self.crop_top_left.unwrap_or((0, 0));
        let original = self.original.unwrap_or(of_prompt.original);
        match task {
            Task::TextToImage if !scored && (self.original.is_none() || self.target.is_none()) => of_prompt,
            Task::TextToImage => Sizes { original, crop_top_left: own_corner, last },
            _ => Sizes { original, crop_top_left: if scored { own_corner } else { of_prompt.crop_top_left }, last },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_come_in_the_networks_order() {
        let (original, crop_top_left, target) = (Some((512, 768)), Some((16, 32)), Some((1024, 640)));
        let request = SizeRequest { original, crop_top_left, target, ..SizeRequest::default() };
        assert_eq!(request.settle(false, (64, 96)).time_ids(), [512.0, 768.0, 16.0, 32.0, 1024.0, 640.0]);
        let own = SizeRequest::default().settle(false, (64, 96));
        assert_eq!(own.time_ids(), [64.0, 96.0, 0.0, 0.0, 64.0, 96.0]);
        assert_eq!(request.settle(true, (64, 96)).time_ids(), [512.0, 768.0, 16.0, 32.0, 6.0]);
        let refined = NegativeSizeRequest::default().settle(&request, true, &Task::TextToImage, (64, 96));
        assert_eq!(refined.time_ids(), [512.0, 768.0, 0.0, 0.0, 2.5]);
    }

    #[test]
    fn half_of_the_negative_sizes_is_none_when_painting_from_a_text() {
        let positive = SizeRequest { original: Some((512, 768)), ..SizeRequest::default() };
        let half = NegativeSizeRequest { original: Some((100, 100)), ..NegativeSizeRequest::default() };
        let both = NegativeSizeRequest { target: Some((200, 200)), ..half };
        let negative =
            |request: &NegativeSizeRequest| request.settle(&positive, false, &Task::TextToImage, (64, 96)).time_ids();
        assert_eq!(negative(&half), [512.0, 768.0, 0.0, 0.0, 64.0, 96.0]);
        assert_eq!(negative(&both), [100.0, 100.0, 0.0, 0.0, 200.0, 200.0]);
    }
}
