//! Weights that outlive the model that was built from them, to build it again.

use super::Weight;
use crate::layers::weights::widened;
use crate::layers::{Computation, WeightSource};
use crate::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a model asked a source for, and what it was given.
#[derive(Debug, Default)]
struct Record {
    weights: BTreeMap<String, (Weight, Computation)>,
    tensors: BTreeMap<String, Tensor>,
    /// The answers about optional layers.
    contained: BTreeMap<String, bool>,
}

/// A [`WeightSource`] that remembers all that a model takes from another one while it is built.
///
/// [`Self::finish`] gives it as a [`WeightStore`].
pub struct WeightRecorder<'a> {
    source: &'a dyn WeightSource,
    record: RefCell<Record>,
}

impl<'a> WeightRecorder<'a> {
    /// To build a model from `source`.
    pub fn new(source: &'a dyn WeightSource) -> Self {
        Self { source, record: RefCell::default() }
    }

    /// To be called when the model is built.
    pub fn finish(self) -> WeightStore {
        WeightStore { record: self.record.into_inner(), device: self.source.device().clone() }
    }
}

impl WeightSource for WeightRecorder<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        // Layers widen vectors and tables; widened here, they are shared by all models.
        let tensor = widened(self.source.tensor(name, shape)?)?;
        self.record.borrow_mut().tensors.insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        let weight = self.source.weight(name, shape, computation)?;
        self.record.borrow_mut().weights.insert(name.into(), (weight.clone(), computation));
        Ok(weight)
    }

    fn contains(&self, name: &str) -> bool {
        let contains = self.source.contains(name);
        self.record.borrow_mut().contained.insert(name.into(), contains);
        contains
    }

    fn device(&self) -> &Device {
        self.source.device()
    }
}

/// The weights of a model by their names, in the form in which its layers hold them.
///
/// A model that is built from it again shares all memory with the first one and needs no checkpoint, so it costs no more than its
/// layers' own few words. A source in between may put adapters on the weights:
/// models with different adapters then exist side by side. Dropping the store
/// lets go of all that no model holds.
#[derive(Debug)]
pub struct WeightStore {
    record: Record,
    device: Device,
}

impl WeightSource for WeightStore {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.record.tensors.get(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
            found => Err(unlike(name, found.map(Tensor::dims), shape)),
        }
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        match self.record.weights.get(name) {
            Some((weight, of)) if weight.shape() == shape && *of == computation => Ok(weight.clone()),
            Some((weight, of)) if weight.shape() == shape => {
                let fix = format!("the model was built with {of:?}; build it so again, or from its checkpoint");
                Err(Error::unusable(ErrorKind::Model, format!("how {name} is used"), format!("{computation:?}"), fix))
            }
            found => Err(unlike(name, found.map(|(weight, _)| weight.shape()), shape)),
        }
    }

    fn contains(&self, name: &str) -> bool {
        let Record { weights, tensors, contained } = &self.record;
        contained.get(name).copied().unwrap_or_else(|| weights.contains_key(name) || tensors.contains_key(name))
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

fn unlike(name: &str, found: Option<&[usize]>, shape: &[usize]) -> Error {
    let found = found.map_or("absent".into(), |found| format!("{found:?}"));
    let fix = format!("{shape:?} is asked for; build the model that the weights were recorded for");
    Error::unusable(ErrorKind::Model, format!("the shape of {name}"), found, fix)
}
