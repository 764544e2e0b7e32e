//! What a UNet keeps of a whole call for those that compute its shallow layers alone.

use crate::Result;
use crate::denoising::{Branch, Call};
use crate::layers::FeatureMap;
use std::ops::Range;
use std::sync::Arc;

/// Of the rows of one call.
#[derive(Debug, Clone)]
pub(super) struct DeepState {
    /// What the rows were to guidance, as many equal groups.
    pub branches: Vec<Branch>,
    /// The state on the way up before the layers that are computed anew.
    pub h: FeatureMap,
    /// How many layers of the highest resolution are computed anew on the way down; one more on the way up.
    pub shallow: usize,
    /// What a ControlNet added to the skip connections of those, if there was one.
    pub residuals: Vec<FeatureMap>,
    /// What a T2I-Adapter adds at the highest resolution.
    pub added: Option<FeatureMap>,
}

impl DeepState {
    /// Of the rows of another call, if they are among these and as large.
    pub fn of(self: Arc<Self>, call: &Call<'_>) -> Result<Option<Arc<Self>>> {
        let (rows, _, height, width) = call.x.dims4()?;
        let (kept, _, h, w) = self.h.dims();
        let (group, wanted) = (kept / self.branches.len(), call.branches.len());
        let first = self.branches.windows(wanted).position(|branches| branches == call.branches);
        let Some(first) = first.filter(|_| (h, w) == (height, width) && rows == group * wanted) else {
            return Ok(None);
        };
        if wanted == self.branches.len() {
            return Ok(Some(self));
        }
        let state = self.images(first * group..(first + wanted) * group)?;
        Ok(Some(Arc::new(Self { branches: call.branches.to_vec(), ..state })))
    }

    fn images(&self, images: Range<usize>) -> Result<Self> {
        let some = |map: &FeatureMap| map.images(images.clone());
        Ok(Self {
            h: some(&self.h)?,
            residuals: self.residuals.iter().map(some).collect::<Result<_>>()?,
            added: self.added.as_ref().map(some).transpose()?,
            ..self.clone()
        })
    }
}
