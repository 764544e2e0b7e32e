//! The way of a run, kept and drawn: to noise and back.

use candle_core::{D, Tensor};
use std::cell::RefCell;
use tweedie::denoising::{Call, Network, Parameterization};
use tweedie::images::{LabelledRow, LabelledRows, Picture, encode_animation};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::{NoiseLevel, Result};

/// Columns of the drawn rows.
const COLUMNS: usize = 10;
/// Pictures smaller than this are enlarged by a whole factor.
const SMALLEST_SIDE: usize = 96;
/// The most frames of an animation, and how long each is shown.
const MOST_FRAMES: usize = 60;
const FRAME_MS: u16 = 80;
/// So many times the finished pictures are shown.
const LAST_FRAMES: usize = 15;

/// One evaluation of the network.
pub(super) struct Evaluation {
    /// As the network saw it.
    x: Tensor,
    /// Of `x`.
    level: NoiseLevel,
    raw: Tensor,
}

/// Passes on to a network and keeps what went in and out, if it is to.
pub(super) struct Watch<'a> {
    network: &'a dyn Network,
    evaluations: Option<RefCell<Vec<Evaluation>>>,
}

impl<'a> Watch<'a> {
    pub fn new(network: &'a dyn Network, keep: bool) -> Self {
        Self { network, evaluations: keep.then(RefCell::default) }
    }

    pub fn into_evaluations(self) -> Vec<Evaluation> {
        self.evaluations.map(RefCell::into_inner).unwrap_or_default()
    }
}

impl Network for Watch<'_> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let raw = self.network.forward(call)?;
        if let Some(kept) = &self.evaluations {
            kept.borrow_mut().push(Evaluation { x: call.x.clone(), level: call.level()?, raw: raw.clone() });
        }
        Ok(raw)
    }
}

/// The states of one batch from noise to data, and what the network took the data for on the way.
#[derive(Debug, Default)]
pub struct Trajectory {
    /// Every state as the network sees it, `[batch, channels, height, width]`, with its level in that scale.
    states: Vec<(NoiseLevel, Tensor)>,
    /// The estimate of the clean pictures at each evaluation of the network, with the share of noise there.
    predictions: Vec<(f64, Tensor)>,
}

impl Trajectory {
    /// Nothing kept yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn fill(
        &mut self,
        states: Vec<(NoiseLevel, Tensor)>,
        evaluations: Vec<Evaluation>,
        parameterization: &Parameterization,
    ) -> Result<()> {
        for Evaluation { x, level, raw } in evaluations {
            self.predictions.push((level.sigma, parameterization.convert(raw, &x, &level)?.x0));
        }
        for (level, x) in states {
            let scale = parameterization.input_scale(&level);
            self.states.push((level.scaled(scale), (x * scale)?));
        }
        Ok(())
    }

    /// Three rows as in Higham, Higham and Grindrod 2023 ("Diffusion models for generative AI: an introduction for
    /// mathematicians"), of the first image: the forward process from the picture to noise; the run from noise to the
    /// picture; and below each of its states the network's estimate of the clean picture. Above each is the noise level sigma of its
    /// state, as the network sees it.
    ///
    /// `seed` is that of the forward process's noise.
    ///
    /// # Errors
    /// If nothing was kept.
    pub fn picture(&self, seed: u64) -> Result<Picture> {
        let columns: Vec<_> = spread(self.states.len(), COLUMNS).map(|i| &self.states[i]).collect();
        let Some((_, last)) = columns.last() else {
            return Err(tweedie::Error::invalid("the trajectory", "empty", "give it to a run first"));
        };
        let data = last.narrow(0, 0, 1)?;
        let noise = TorchNoise::shared(seed).normal(data.dims())?.to_device(data.device())?;
        let (mut forward, mut reverse, mut estimates) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (level, state)) in columns.iter().enumerate() {
            let finished = i + 1 == columns.len();
            let estimate = if finished { None } else { self.prediction(level.sigma) };
            let known = if finished { data.clone() } else { level.add_noise(&data, &noise)? };
            forward.insert(0, labelled(level, &known)?);
            reverse.push(labelled(level, &state.narrow(0, 0, 1)?)?);
            estimates.push(labelled(level, &estimate.map_or(Ok(data.clone()), |x0| x0.narrow(0, 0, 1))?)?);
        }
        let row = |name: &str, cells| LabelledRow { name: name.into(), cells };
        let rows =
            vec![row("forward process", forward), row("reverse process", reverse), row("estimate of x₀", estimates)];
        LabelledRows { rows }.draw()
    }

    /// The estimate at the evaluation whose noise is nearest.
    fn prediction(&self, sigma: f64) -> Option<&Tensor> {
        let distance = |kept: &&(f64, Tensor)| (kept.0 - sigma).abs();
        let nearest = self.predictions.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.map(|(_, x0)| x0)
    }

    /// An animated PNG of all kept images, side by side, from noise to pictures.
    ///
    /// # Errors
    /// If nothing was kept.
    pub fn animation(&self) -> Result<Vec<u8>> {
        let mut frames = Vec::new();
        for i in spread(self.states.len(), MOST_FRAMES) {
            let state = &self.states[i].1;
            let images = state.chunk(state.dim(0)?, 0)?;
            let columns = (images.len() as f64).sqrt().ceil() as usize;
            frames.push(Picture::grid(&pictures(&images)?, columns, 4)?);
        }
        if let Some(last) = frames.last().cloned() {
            frames.extend(std::iter::repeat_n(last, LAST_FRAMES));
        }
        encode_animation(&frames, FRAME_MS)
    }
}

/// At most `most` indices below `count`, evenly spread, the first and the last among them.
fn spread(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let shown = count.min(most);
    (0..shown).map(move |i| if shown < 2 { 0 } else { (i * (count - 1) + (shown - 1) / 2) / (shown - 1) })
}

/// A picture of a state, with its noise level.
fn labelled(level: &NoiseLevel, x: &Tensor) -> Result<(String, Picture)> {
    Ok((format!("σ {:.3}", level.sigma), picture(x)?))
}

/// Tensors of one image each as pictures; pure noise is scaled to what can be shown.
fn pictures(images: &[Tensor]) -> Result<Vec<Picture>> {
    images.iter().map(picture).collect()
}

fn picture(image: &Tensor) -> Result<Picture> {
    let (_, _, height, width) = image.dims4()?;
    let factor = SMALLEST_SIDE.div_ceil(height.max(width)).max(1);
    let enlarged = image.to_dtype(candle_core::DType::F32)?.contiguous()?;
    let enlarged = repeat(&repeat(&enlarged, D::Minus2, factor)?, D::Minus1, factor)?;
    Ok(Picture::from_tensor(&enlarged)?.swap_remove(0))
}

/// Every value `factor` times along a dimension.
fn repeat(x: &Tensor, dim: D, factor: usize) -> Result<Tensor> {
    let indices: Vec<u32> = (0..x.dim(dim)? * factor).map(|i| (i / factor) as u32).collect();
    Ok(x.index_select(&Tensor::new(indices, x.device())?, dim)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_spread_from_the_first_to_the_last() {
        assert_eq!(spread(3, 10).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(101, 5).collect::<Vec<_>>(), [0, 25, 50, 75, 100]);
        assert_eq!(spread(1, 5).collect::<Vec<_>>(), [0]);
        assert_eq!(spread(0, 5).count(), 0);
        for count in 2..40 {
            let indices: Vec<_> = spread(count, 10).collect();
            assert!(indices[0] == 0 && indices[indices.len() - 1] == count - 1);
            assert!(indices.windows(2).all(|pair| pair[0] < pair[1]), "{indices:?}");
        }
    }
}
