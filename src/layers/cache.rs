//! What layers keep during one run.

use crate::Result;
use candle_core::{Tensor, TensorId};
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many tensors' results are kept for each layer: guidance in an interval and a control on the prompted rows look at
/// three. A caller that makes a new one in every step thus costs no memory that grows.
const KEPT_BY_LAYER: usize = 4;

/// A layer's name in a [`Cache`], its own in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId(usize);

impl LayerId {
    /// One that no other layer has.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What layers make of tensors that are the same in every step of a run, such as the keys and values of a text.
///
/// It belongs to the run, not to the model: runs that share a model do not see each other's, and with the run its memory
/// is given back. An empty one is as good as any; it only costs the time to make everything anew.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Mutex<HashMap<LayerId, Kept>>,
    states: Mutex<HashMap<LayerId, Arc<dyn Any + Send + Sync>>>,
}

/// Of one layer, the newest last.
type Kept = VecDeque<(TensorId, Vec<Tensor>)>;

impl Cache {
    /// What `make` makes, or made before, for `layer` of `source`, which must be the same tensor and not only an equal one.
    ///
    /// What gradients pass through changes from step to step, and is never kept.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn of(
        &self,
        layer: LayerId,
        source: &Tensor,
        make: impl FnOnce() -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let layers = || locked(&self.layers);
        if let Some(kept) = layers().get(&layer)
            && let Some((_, made)) = kept.iter().find(|(id, _)| *id == source.id())
        {
            return Ok(made.clone());
        }
        // Not under the lock: while it waits for its own tasks, this thread may be given another caller's.
        let made = make()?;
        if !made.iter().any(Tensor::track_op) {
            let mut layers = layers();
            let kept = layers.entry(layer).or_default();
            if kept.len() == KEPT_BY_LAYER {
                kept.pop_front();
            }
            kept.push_back((source.id(), made.clone()));
        }
        Ok(made)
    }

    /// Keeps a state of `layer` for calls to come, in the place of the one before.
    pub fn keep<T: Any + Send + Sync>(&self, layer: LayerId, state: T) {
        locked(&self.states).insert(layer, Arc::new(state));
    }

    /// The state of `layer` that was kept last, if it is one of that type.
    pub fn state<T: Any + Send + Sync>(&self, layer: LayerId) -> Option<Arc<T>> {
        let state = locked(&self.states).get(&layer).cloned();
        state.and_then(|state| state.downcast().ok())
    }
}

/// A panic elsewhere leaves a whole value or none.
fn locked<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use std::cell::Cell;

    fn tensor() -> Result<Tensor> {
        Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?)
    }

    #[test]
    fn each_layer_keeps_its_own_of_each_tensor() -> Result<()> {
        let (cache, made) = (Cache::default(), Cell::new(0));
        let of = |layer: LayerId, source: &Tensor| {
            cache.of(layer, source, || {
                made.set(made.get() + 1);
                Ok(vec![source.affine(1.0, f64::from(made.get()))?])
            })
        };
        let (layers, sources) = ([LayerId::unique(), LayerId::unique()], [tensor()?, tensor()?]);
        let first = of(layers[0], &sources[0])?;
        for layer in layers {
            for source in &sources {
                assert_eq!(of(layer, source)?[0].id(), of(layer, source)?[0].id());
            }
        }
        assert_eq!(of(layers[0], &sources[0])?[0].id(), first[0].id());
        assert_eq!(made.get(), 4);
        Ok(())
    }

    #[test]
    fn what_is_kept_does_not_grow() -> Result<()> {
        let (cache, layer) = (Cache::default(), LayerId::unique());
        for _ in 0..3 * KEPT_BY_LAYER {
            let source = tensor()?;
            cache.of(layer, &source, || Ok(vec![source.clone()]))?;
        }
        assert_eq!(locked(&cache.layers)[&layer].len(), KEPT_BY_LAYER);
        Ok(())
    }

    #[test]
    fn of_a_layer_the_last_state_is_kept() {
        let (cache, layers) = (Cache::default(), [LayerId::unique(), LayerId::unique()]);
        for state in 1..=3 {
            cache.keep(layers[0], state);
        }
        assert_eq!(cache.state::<i32>(layers[0]).as_deref(), Some(&3));
        assert!(cache.state::<i64>(layers[0]).is_none() && cache.state::<i32>(layers[1]).is_none());
    }

    #[test]
    fn what_gradients_pass_through_is_made_anew() -> Result<()> {
        let (cache, layer, made) = (Cache::default(), LayerId::unique(), Cell::new(0));
        let (source, weight) = (tensor()?, Var::zeros(1, DType::F32, &Device::Cpu)?);
        for _ in 0..2 {
            cache.of(layer, &source, || {
                made.set(made.get() + 1);
                Ok(vec![(&source * weight.as_tensor())?])
            })?;
        }
        assert_eq!(made.get(), 2);
        Ok(())
    }
}
