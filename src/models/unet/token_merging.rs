//! Self-attention of fewer tokens: similar ones are merged before it and are alike after it.
//!
//! Bolya and Hoffman 2023, "Token merging for fast stable diffusion", with the choices of their program without randomness: of every two by
//! two tokens the first one stays, and of the others those that resemble one of these most are merged into it.

use crate::Result;
use crate::kernels::{self, PackedWeight, RowGroups};
use crate::layers::Backend;
use candle_core::{D, DType, Tensor};

/// The sides of the squares of tokens of which one stays.
const SIDE: usize = 2;

/// The most scores in memory at a time.
const SCORES: usize = 8 << 20;

/// The tokens of a grid, of which so great a share is to be merged.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenMerging {
    pub share: f64,
    pub height: usize,
    pub width: usize,
    pub backend: Backend,
}

/// Which tokens are merged.
#[derive(Debug)]
pub(super) struct MergedTokens {
    /// The tokens at each place.
    places: RowGroups,
    /// The place of each token.
    tokens: RowGroups,
    backend: Backend,
}

impl TokenMerging {
    /// Chooses by the tokens' states, `[batch, height * width, channels]`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn of(self, tokens: &Tensor) -> Result<MergedTokens> {
        let (batch, count, _) = tokens.dims3()?;
        let (staying, others) = self.split();
        // A grid of one row has no squares.
        let most = if staying.is_empty() { 0 } else { others.len() };
        let merged = ((self.share * count as f64) as usize).min(most);
        let mut places = Vec::with_capacity(batch);
        for mut pairs in self.pairs(tokens, &staying, &others)? {
            // Of those that are as similar the first is merged first.
            pairs.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
            let (merged, left) = pairs.split_at(merged);
            let mut groups: Vec<Vec<u32>> = staying.iter().map(|&token| vec![token]).collect();
            merged.iter().for_each(|pair| groups[pair.staying].push(pair.token));
            groups.extend(left.iter().map(|pair| vec![pair.token]));
            places.push(groups);
        }
        let tokens = places.iter().map(|groups| {
            let mut places = vec![Vec::new(); count];
            for (place, group) in groups.iter().enumerate() {
                group.iter().for_each(|&token| places[token as usize].push(place as u32));
            }
            places
        });
        let tokens = RowGroups::new(tokens.collect())?;
        Ok(MergedTokens { places: RowGroups::new(places)?, tokens, backend: self.backend })
    }

    /// The tokens that stay, and the others.
    fn split(self) -> (Vec<u32>, Vec<u32>) {
        let whole = |i: usize, side: usize| i.is_multiple_of(SIDE) && i + SIDE <= side;
        let stays = |&token: &u32| {
            let (y, x) = (token as usize / self.width, token as usize % self.width);
            whole(y, self.height) && whole(x, self.width)
        };
        (0..(self.height * self.width) as u32).partition(stays)
    }

    /// For each row of the batch and each of the other tokens the staying one that points most in its direction.
    fn pairs(self, tokens: &Tensor, staying: &[u32], others: &[u32]) -> Result<Vec<Vec<Pair>>> {
        let batch = tokens.dim(0)?;
        if staying.is_empty() {
            let alone = others.iter().map(|&token| Pair { token, staying: 0, similarity: 0.0 });
            return Ok(vec![alone.collect(); batch]);
        }
        let those = |chosen: &[u32]| {
            let groups = vec![chosen.iter().map(|&token| vec![token]).collect(); batch];
            means(tokens, &RowGroups::new(groups)?, self.backend)
        };
        let (staying_tokens, other_tokens) = (those(staying)?, those(others)?);
        let rows = (0..batch).map(|row| {
            let found = most_similar(&other_tokens.get(row)?, &staying_tokens.get(row)?, self.backend)?;
            let pair = |(&token, (staying, similarity))| Pair { token, staying, similarity };
            Ok(others.iter().zip(found).map(pair).collect())
        });
        rows.collect()
    }
}

/// For each row of `x`, `[rows, channels]`, the one of `to`, `[others, channels]`, that points most in its direction, and the cosine
/// between them.
fn most_similar(x: &Tensor, to: &Tensor, backend: Backend) -> Result<Vec<(usize, f32)>> {
    let at_once = (SCORES / to.dim(0)?).max(1);
    let parts = (0..x.dim(0)?).step_by(at_once).map(|first| x.narrow(0, first, at_once.min(x.dim(0)? - first)));
    let mut found = Vec::with_capacity(x.dim(0)?);
    match backend {
        Backend::Kernels => {
            let (right, none) = (PackedWeight::new(to)?, Tensor::zeros(to.dim(0)?, to.dtype(), to.device())?);
            let shares: Vec<f32> = kernels::lengths_of_rows(to)?.into_iter().map(f32::recip).collect();
            for part in parts {
                let part = part?;
                let (best, products) =
                    kernels::largest_of_rows(&kernels::linear_packed(&part, &right, &none)?, &shares)?;
                let cosines = products.into_iter().zip(kernels::lengths_of_rows(&part)?).map(|(p, length)| p / length);
                found.extend(best.into_iter().zip(cosines));
            }
        }
        // In f32, where squares of half precision have room.
        Backend::Candle => {
            let directions = |x: &Tensor| -> Result<Tensor> {
                let x = x.to_dtype(DType::F32)?;
                Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
            };
            let right = directions(to)?.t()?.contiguous()?;
            for part in parts {
                let scores = directions(&part?)?.matmul(&right)?;
                let (best, cosines) = (scores.argmax(1)?.to_vec1::<u32>()?, scores.max(1)?.to_vec1()?);
                found.extend(best.into_iter().map(|column| column as usize).zip(cosines));
            }
        }
    }
    Ok(found)
}

fn means(x: &Tensor, groups: &RowGroups, backend: Backend) -> Result<Tensor> {
    Ok(match backend {
        Backend::Kernels => kernels::mean_rows(x, groups)?,
        Backend::Candle => kernels::mean_rows_definition(x, groups)?,
    })
}

/// A token and the one that stays which it resembles most.
#[derive(Debug, Clone, Copy)]
struct Pair {
    token: u32,
    staying: usize,
    similarity: f32,
}

impl MergedTokens {
    /// The means of the tokens at each place: `[batch, places, channels]`.
    ///
    /// # Errors
    /// If the shape is not that of the tokens.
    pub fn merge(&self, tokens: &Tensor) -> Result<Tensor> {
        means(tokens, &self.places, self.backend)
    }

    /// What is at each token's place: `[batch, tokens, channels]`.
    ///
    /// # Errors
    /// If the shape is not that of the places.
    pub fn unmerge(&self, places: &Tensor) -> Result<Tensor> {
        means(places, &self.tokens, self.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseSource, TorchNoise};
    use candle_core::Device;

    fn merging(share: f64, height: usize, width: usize) -> TokenMerging {
        TokenMerging { share, height, width, backend: Backend::Kernels }
    }

    /// Tokens that are alike are merged without a loss, and of each pair both have the mean.
    #[test]
    fn tokens_of_one_kind_are_merged_first() -> Result<()> {
        let kinds = [[1.0f32, 0.0], [0.0, 2.0]];
        let grid: Vec<f32> = (0..16).flat_map(|i| kinds[i / 2 % 2]).collect();
        let x = Tensor::from_vec(grid, (1, 16, 2), &Device::Cpu)?;
        for share in [0.25, 0.5, 0.75] {
            let merged = merging(share, 4, 4).of(&x)?;
            let places = merged.merge(&x)?;
            assert_eq!(places.dims(), [1, 16 - (16.0 * share) as usize, 2]);
            assert_eq!(merged.unmerge(&places)?.to_vec3::<f32>()?, x.to_vec3::<f32>()?, "{share}");
        }
        Ok(())
    }

    /// By the definition: each token beside one that stays, by plain loops over all pairs.
    #[test]
    fn merged_tokens_have_the_mean_of_their_place() -> Result<()> {
        for (height, width, share) in [(4, 6, 0.5), (5, 7, 0.4), (6, 4, 0.9), (1, 5, 0.5)] {
            let x = TorchNoise::shared(3).normal(&[2, height * width, 8])?;
            for backend in [Backend::Kernels, Backend::Candle] {
                let merged = TokenMerging { backend, ..merging(share, height, width) }.of(&x)?;
                let out = merged.unmerge(&merged.merge(&x)?)?.to_vec3::<f32>()?;
                for (row, out) in x.to_vec3::<f32>()?.iter().zip(&out) {
                    let expected = defined(row, width, share);
                    for (a, b) in out.iter().flatten().zip(expected.iter().flatten()) {
                        assert!((a - b).abs() < 1e-6, "{a} {b}: means of a few numbers of size 1");
                    }
                }
            }
        }
        Ok(())
    }

    fn defined(row: &[Vec<f32>], width: usize, share: f64) -> Vec<Vec<f32>> {
        let height = row.len() / width;
        let stays = |i: usize| {
            (i / width).is_multiple_of(2)
                && i / width + 1 < height
                && (i % width).is_multiple_of(2)
                && i % width + 1 < width
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let cosine =
            |i: usize, j: usize| dot(&row[i], &row[j]) / (dot(&row[i], &row[i]) * dot(&row[j], &row[j])).sqrt();
        let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
        for i in (0..row.len()).filter(|&i| !stays(i)) {
            let all = (0..row.len()).filter(|&j| stays(j)).map(|j| (cosine(i, j), i, j));
            pairs.extend(all.max_by(|a, b| a.0.total_cmp(&b.0)));
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        pairs.truncate((row.len() as f64 * share) as usize);
        let mut groups: Vec<Vec<usize>> = (0..row.len()).map(|i| vec![i]).collect();
        pairs.iter().for_each(|&(_, i, j)| groups[j].push(i));
        let mut out = row.to_vec();
        for j in (0..row.len()).filter(|&j| groups[j].len() > 1) {
            let mean = |c: usize| groups[j].iter().map(|&i| row[i][c]).sum::<f32>() / groups[j].len() as f32;
            let mean: Vec<f32> = (0..row[j].len()).map(mean).collect();
            groups[j].iter().for_each(|&i| out[i].clone_from(&mean));
        }
        out
    }
}
