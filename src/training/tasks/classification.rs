//! What a classifier is trained on and judged by.

use crate::layers::log_softmax;
use crate::training::data::ImageSet;
use crate::{Error, Result};
use candle_core::{D, Tensor};

/// The mean of `-log p(label)` over a batch, `p` the softmax of the logits.
///
/// # Shapes
/// `logits`: `[batch, classes]`; `labels`: `[batch]` of u32 below the number of classes; the result is a scalar.
///
/// # Errors
/// If the shapes do not fit, or a label is no class.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(log_softmax(logits)?.gather(&labels.unsqueeze(1)?, D::Minus1)?.mean_all()?.neg()?)
}

/// The same over those of a batch that have a label; 0 if none has.
///
/// # Shapes
/// `logits`: `[batch, classes]`; `labels`: for each, a number below that of classes or nothing; the result is a scalar.
///
/// # Errors
/// If the shapes do not fit, or a label is no class.
pub fn cross_entropy_of_labelled(logits: &Tensor, labels: &[Option<u32>]) -> Result<Tensor> {
    let device = logits.device();
    let count = labels.iter().flatten().count().max(1) as f32;
    let weights: Vec<f32> = labels.iter().map(|label| if label.is_some() { 1.0 / count } else { 0.0 }).collect();
    let classes: Vec<u32> = labels.iter().map(|label| label.unwrap_or(0)).collect();
    let weights = Tensor::from_vec(weights, labels.len(), device)?.to_dtype(logits.dtype())?;
    let classes = Tensor::from_vec(classes, labels.len(), device)?;
    let logarithms = log_softmax(logits)?.gather(&classes.unsqueeze(1)?, D::Minus1)?.squeeze(1)?;
    Ok((logarithms * weights)?.sum_all()?.neg()?)
}

/// Which classes pictures of each class were taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// `confusion[asked][found]`: how many pictures of class `asked` were taken for `found`.
    pub confusion: Vec<Vec<usize>>,
}

impl Judgement {
    /// Nothing judged yet, of so many classes.
    pub fn new(classes: usize) -> Self {
        Self { confusion: vec![vec![0; classes]; classes] }
    }

    /// Adds pictures: each one's class is that of its largest logit.
    ///
    /// # Shapes
    /// `logits`: `[batch, classes]`; `asked`: a class for each.
    ///
    /// # Errors
    /// If the shapes do not fit, or a class is none of these.
    pub fn add(&mut self, logits: &Tensor, asked: &[u32]) -> Result<()> {
        let found = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let classes = self.confusion.len();
        if found.len() != asked.len() {
            let fix = format!("there are {} pictures, and each has one class", found.len());
            return Err(Error::invalid("the number of classes asked for", asked.len(), fix));
        }
        for (&asked, found) in asked.iter().zip(found) {
            let cell = self.confusion.get_mut(asked as usize).and_then(|row| row.get_mut(found as usize));
            let fix = format!("the classifier tells {classes} classes apart, counted from 0");
            *cell.ok_or_else(|| Error::invalid("a class", asked.max(found), fix))? += 1;
        }
        Ok(())
    }

    /// Pictures judged.
    pub fn total(&self) -> usize {
        self.confusion.iter().flatten().sum()
    }

    /// Pictures that were taken for what they should be.
    pub fn correct(&self) -> usize {
        self.confusion.iter().enumerate().map(|(class, row)| row[class]).sum()
    }

    /// The share of them; 0 if nothing has been judged.
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.total().max(1) as f64
    }
}

/// Judges a labelled set in batches; `classify` gives the logits of pictures, `[batch, classes]`.
///
/// # Errors
/// If the set has no labels, or a batch cannot be judged.
pub fn evaluate(set: &ImageSet, classes: usize, classify: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Judgement> {
    const BATCH: usize = 250;
    let Some(labels) = set.labels() else {
        return Err(Error::invalid("the data set", "not labelled", "give one with a class for every image"));
    };
    let mut judgement = Judgement::new(classes);
    for start in (0..set.len()).step_by(BATCH) {
        let indices: Vec<usize> = (start..set.len().min(start + BATCH)).collect();
        judgement.add(&classify(&set.images(&indices)?)?, &labels[start..start + indices.len()])?;
    }
    Ok(judgement)
}
