//! A small network that says what a picture shows: which concepts and where, before what, in which style.
//!
//! A residual network (He et al. 2016, with the norms before the convolutions as in He et al. 2016b) of which the last two
//! resolutions are looked at. A summary of the coarsest one, place by place, answers what concerns the whole picture: position, size,
//! arrangement. Each of the two slots of concepts has a map of attention over the places of the finer one, which depends on what
//! is there and on the summary, and the mean of the features under it is put to one list of looks that both slots share, each concept in
//! each style: so what is learned of a concept alone is known of it in a pair, and the style is read off the thing that has it.

mod classes;
mod config;
mod shown;

pub use classes::{JudgeClasses, JudgeHead, Labels, Seen, Unsaid, is_ordered};
pub use config::JudgeConfig;
pub use shown::Shown;

use super::resnet::{ResnetBlock, ResnetConfig};
use crate::images::Picture;
use crate::layers::{Activation, Backend, Conv2d, ConvGeometry, FeatureMap, GroupNorm, Linear, Weights, log_softmax};
use crate::{Device, Error, ErrorKind, Result};
use candle_core::{D, Tensor};

/// Channels of pictures.
const CHANNELS: usize = 3;
/// Groups of norms.
const GROUPS: usize = 8;
const EPSILON: f64 = 1e-6;
/// Slots of concepts.
const SLOTS: usize = 2;
/// What is said of a picture as a whole.
const ATTRIBUTES: [JudgeHead; 4] = [JudgeHead::Background, JudgeHead::Position, JudgeHead::Size, JudgeHead::Relation];

/// Of each of [`JudgeHead::ALL`] the unnormalised logarithms of its classes' probabilities, `[batch, classes]`.
pub type JudgeLogits = [Tensor; JudgeHead::ALL.len()];

/// The judge.
#[derive(Debug)]
pub struct Judge {
    config: JudgeConfig,
    conv_in: Conv2d,
    stages: Vec<Stage>,
    /// Of the last resolution but one, and of the last.
    norms: [GroupNorm; 2],
    summary: Linear,
    /// How much each slot looks at a place, by what is there and by the picture as a whole.
    attention: [Linear; 2],
    /// Each concept in each style.
    looks: Linear,
    /// That there is no second concept.
    alone: Linear,
    /// [`ATTRIBUTES`].
    attributes: Vec<Linear>,
    backend: Backend,
}

/// Half the resolution, then a residual block.
#[derive(Debug)]
struct Stage {
    down: Conv2d,
    block: ResnetBlock,
}

impl Stage {
    fn new(weights: &Weights<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let geometry = ConvGeometry::square(3, 2, 1);
        let sizes = ResnetConfig {
            inputs: outputs,
            outputs,
            time_width: None,
            time_scale_shift: false,
            groups: GROUPS,
            epsilon: EPSILON,
            output_scale: 1.0,
        };
        Ok(Self {
            down: Conv2d::with_geometry(&weights.at("down"), inputs, outputs, geometry)?,
            block: ResnetBlock::new(&weights.at("block"), sizes)?,
        })
    }

    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.block.forward(&self.down.forward(x)?, None)
    }
}

impl Judge {
    /// From weights: `conv_in`, `stages.N.down`, `stages.N.block`, `norms.N`, `summary`, `attention.N`, `looks`, `alone`,
    /// `attributes.N`.
    ///
    /// # Errors
    /// If the configuration cannot be used, or the weights cannot be had.
    pub fn new(config: JudgeConfig, weights: &Weights<'_>) -> Result<Self> {
        config.check().map_err(|(field, fix)| {
            let value = config.network_fields()[field].to_string();
            Error::unusable(ErrorKind::Model, format!("the judge's {field}"), value, fix)
        })?;
        let channels = &config.block_out_channels;
        let stages = channels.windows(2).enumerate();
        let stages = stages.map(|(i, pair)| Stage::new(&weights.at("stages").at(i), pair[0], pair[1]));
        let stages = stages.collect::<Result<Vec<_>>>()?;
        let (fine, coarse) = (channels[channels.len() - 2], channels[channels.len() - 1]);
        let side = config.sample_size >> stages.len();
        let (places, features, summary) = (4 * side * side, fine + coarse, config.summary_size);
        let norm = |i: usize, channels| GroupNorm::new(&weights.at("norms").at(i), GROUPS, channels, EPSILON);
        let attributes = ATTRIBUTES.iter().enumerate().map(|(i, &head)| {
            Linear::new(&weights.at("attributes").at(i), features + summary, config.classes.count(head))
        });
        let looks = config.classes.count(JudgeHead::First) * config.classes.count(JudgeHead::Style);
        Ok(Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), CHANNELS, channels[0], 3)?,
            stages,
            norms: [norm(0, fine)?.with_silu(), norm(1, coarse)?.with_silu()],
            summary: Linear::new(&weights.at("summary"), side * side * coarse, summary)?,
            attention: [
                Linear::new(&weights.at("attention.0"), features, SLOTS)?,
                Linear::new(&weights.at("attention.1"), summary, SLOTS * places)?,
            ],
            looks: Linear::new(&weights.at("looks"), features, looks)?,
            alone: Linear::new(&weights.at("alone"), features + summary, 1)?,
            attributes: attributes.collect::<Result<_>>()?,
            backend: weights.backend(),
            config,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &JudgeConfig {
        &self.config
    }

    /// What it takes the classes of pictures to be.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, sample_size, sample_size]` in `[-1, 1]`.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn forward(&self, x: &Tensor) -> Result<JudgeLogits> {
        Ok(self.forward_with_looks(x)?.0)
    }

    /// The same, and of each slot the unnormalised logarithms of its looks' probabilities, by the numbers of [`JudgeClasses::look`].
    ///
    /// # Shapes
    /// As [`Self::forward`]; looks are `[batch, concepts x styles]`, those of the second slot with one more, the last: that there is
    /// nothing.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn forward_with_looks(&self, x: &Tensor) -> Result<(JudgeLogits, [Tensor; SLOTS])> {
        let (batch, channels, height, width) = x.dims4()?;
        let size = self.config.sample_size;
        if (channels, height, width) != (CHANNELS, size, size) {
            let fix = format!("the judge looks at {CHANNELS}x{size}x{size}");
            return Err(Error::invalid("the pictures' size", format!("{channels}x{height}x{width}"), fix));
        }
        let mut fine = None;
        let mut h = self.conv_in.forward(&FeatureMap::from_nchw(x, self.backend)?)?;
        for stage in &self.stages {
            let next = stage.forward(&h)?;
            fine = Some(std::mem::replace(&mut h, next));
        }
        // There are two stages at least.
        let fine = self.norms[0].forward(&fine.unwrap_or_else(|| h.clone()))?;
        let coarse = self.norms[1].forward(&h)?;
        let summary = Activation::Silu.forward(&self.summary.forward(&coarse.tokens()?.flatten_from(1)?)?)?;
        let (_, _, height, width) = fine.dims();
        let places = fine.concat(&coarse.resize_nearest(height, width)?)?.tokens()?;

        let by_place = self.attention[0].forward(&places)?.transpose(1, 2)?;
        let by_picture = self.attention[1].forward(&summary)?.reshape(by_place.dims())?;
        let attention = log_softmax(&(by_place + by_picture)?)?.exp()?;
        let slots = attention.contiguous()?.matmul(&places.contiguous()?)?;
        let whole = Tensor::cat(&[&places.mean(1)?, &summary], 1)?;

        let looks = self.looks.forward(&slots)?;
        let styles = self.config.classes.count(JudgeHead::Style);
        let slot = |i: usize| looks.narrow(1, i, 1)?.reshape((batch, looks.dim(D::Minus1)? / styles, styles));
        let (first, second) = (slot(0)?, slot(1)?);
        let alone = self.alone.forward(&whole)?;
        // In each slot the probability of a concept is the sum of those of its looks, and so is that of a style. What both say of
        // the style is multiplied, the second to the power of the probability that there is a second concept.
        let second_concept = Tensor::cat(&[&second.log_sum_exp(2)?, &alone], 1)?;
        let last = second_concept.dim(1)? - 1;
        let is_there = (log_softmax(&second_concept)?.narrow(1, last, 1)?.exp()?.neg()? + 1.0)?;
        let style = (first.log_sum_exp(1)? + second.log_sum_exp(1)?.broadcast_mul(&is_there)?)?;
        let [background, position, size, relation] = [0, 1, 2, 3].map(|i| self.attributes[i].forward(&whole));
        let looks = [first.flatten_from(1)?, Tensor::cat(&[&second.flatten_from(1)?, &alone], 1)?];
        let logits = [first.log_sum_exp(2)?, second_concept, background?, style, position?, size?, relation?];
        Ok((logits, looks))
    }

    /// The classes that it takes pictures to have.
    ///
    /// # Shapes
    /// As [`Self::forward`]; one answer for each picture.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn seen(&self, x: &Tensor) -> Result<Vec<Seen>> {
        let mut seen = vec![Seen::default(); x.dim(0)?];
        for (head, logits) in self.forward(x)?.iter().enumerate() {
            for (seen, class) in seen.iter_mut().zip(logits.argmax(D::Minus1)?.to_vec1::<u32>()?) {
                seen[head] = class;
            }
        }
        Ok(seen)
    }

    /// The same of one picture of any size, which is averaged, and stretched if it is no square, so that all of it is seen.
    ///
    /// # Errors
    /// If the picture cannot be resized.
    pub fn look(&self, picture: &Picture) -> Result<Seen> {
        let size = self.config.sample_size;
        let seen = self.seen(&picture.averaged(size, size)?.to_tensor(&Device::Cpu)?)?;
        Ok(seen.first().copied().unwrap_or_default())
    }
}
