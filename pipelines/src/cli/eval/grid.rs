//! Grids of the pictures of prompts.

use std::collections::BTreeMap;
use tweedie::images::Picture;
use tweedie_pipelines::{PromptSet, Result};

/// The longest row of a grid, in pictures.
const COLUMNS: usize = 24;
/// Larger pictures are made smaller in a grid.
const LARGEST_SIDE: usize = 256;
/// White pixels between pictures.
const GAP: usize = 2;

/// The pictures of each seed, by the numbers of their prompts.
#[derive(Debug, Default)]
pub struct Grids {
    pictures: BTreeMap<u64, BTreeMap<usize, Picture>>,
}

impl Grids {
    /// Adds a picture.
    pub fn add(&mut self, prompt: usize, seed: u64, picture: &Picture) -> Result<()> {
        let longest = picture.width().max(picture.height());
        let picture = match longest > LARGEST_SIDE {
            true => {
                let side = |side: usize| (side * LARGEST_SIDE / longest).max(1);
                picture.averaged(side(picture.width()), side(picture.height()))?
            }
            false => picture.clone(),
        };
        self.pictures.entry(seed).or_default().insert(prompt, picture);
        Ok(())
    }

    /// For each seed a grid of its pictures. Each kind of prompts starts a row; of one kind alone there are about as many rows as
    /// columns.
    pub fn draw(&self, prompts: &PromptSet) -> Result<Vec<(u64, Picture)>> {
        self.pictures.iter().map(|(&seed, pictures)| Ok((seed, grid(prompts, pictures)?))).collect()
    }
}

fn grid(prompts: &PromptSet, pictures: &BTreeMap<usize, Picture>) -> Result<Picture> {
    let of_kind = |kind: &str| {
        let of_kind = pictures.iter().filter(|(prompt, _)| prompts.prompts()[**prompt].kind == kind);
        of_kind.map(|(_, picture)| picture.clone()).collect::<Vec<_>>()
    };
    let kinds: Vec<Vec<Picture>> = prompts.kinds().into_iter().map(of_kind).filter(|row| !row.is_empty()).collect();
    let longest = kinds.iter().map(Vec::len).max().unwrap_or(1);
    let columns = match kinds.len() {
        1 => (1..).find(|columns| columns * columns >= longest).unwrap_or(1),
        _ => longest.min(COLUMNS),
    };
    let mut rows = Vec::new();
    for kind in kinds {
        let missing = kind.len().next_multiple_of(columns) - kind.len();
        let blank = kind.first().map(|picture| {
            let (width, height) = (picture.width(), picture.height());
            Picture::new(width, height, vec![255; 3 * width * height])
        });
        rows.extend(kind);
        rows.extend(std::iter::repeat_n(blank.transpose()?, missing).flatten());
    }
    Picture::grid(&rows, columns, GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_rows() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("prompts.json");
        let kinds = ["x", "y", "x", "x"].map(|kind| format!(r#"{{"prompt": "p", "kind": "{kind}"}}"#));
        std::fs::write(&path, format!("[{}]", kinds.join(",")))?;
        let prompts = PromptSet::read(&path)?;
        let mut grids = Grids::default();
        for prompt in 0..4u8 {
            grids.add(prompt.into(), 7, &Picture::new(4, 2, vec![10 * prompt; 24])?)?;
        }
        let drawn = grids.draw(&prompts)?;
        let (seed, grid) = &drawn[0];
        assert_eq!((*seed, grid.width(), grid.height()), (7, 3 * 4 + 2 * 2, 2 * 2 + 2));
        let at = |column: usize, row: usize| grid.rgb()[3 * (row * 4 * grid.width() + column * 6)];
        assert_eq!([at(0, 0), at(1, 0), at(2, 0), at(0, 1), at(1, 1), at(2, 1)], [0, 20, 30, 10, 255, 255]);
        Ok(())
    }
}
