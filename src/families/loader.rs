//! From a component's files, or its weights in memory, to what is built of them.

use crate::adapters::{AdapterSource, Loras, WithAdapters};
use crate::checkpoints::{Checkpoint, Held, ModelFiles, Precision};
use crate::kernels::{MatmulPrecision, RoundedTo};
use crate::layers::{Backend, Computation, Packed, Weight, WeightRecorder, WeightSource, WeightStore, Weights};
use crate::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The weights of a model's components as their layers hold them, by which components are built again without their files: with
/// other adapters beside the weights, whose memory all of them share.
#[derive(Debug, Default)]
pub struct KeptWeights(Mutex<BTreeMap<String, Arc<WeightStore>>>);

impl KeptWeights {
    fn get(&self, component: &str) -> Option<Arc<WeightStore>> {
        self.stores().get(component).cloned()
    }

    fn keep(&self, component: &str, store: WeightStore) {
        self.stores().insert(component.into(), Arc::new(store));
    }

    fn stores(&self) -> MutexGuard<'_, BTreeMap<String, Arc<WeightStore>>> {
        // A panic elsewhere leaves whole stores.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens components of one model, and says how their weights are held and computed with.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The model's files.
    pub files: &'a ModelFiles,
    /// Where weights go.
    pub device: &'a Device,
    /// The element type of matrices in memory.
    pub weights: DType,
    /// In which form the others are held. The autoencoder's, whose last layers draw every pixel, are never rounded.
    pub held: Held,
    /// The element type of activations.
    pub activations: DType,
    /// Another way to compute than the device's own.
    pub backend: Option<Backend>,
    /// Other products than are fastest here for the element type.
    pub products: Option<MatmulPrecision>,
    /// Whether of files their headers alone are read, and what is built has nothing in it: to see whether it can be.
    pub headers_alone: bool,
    /// Where weights come from in the place of files, such as random ones; they are not kept.
    pub source: Option<&'a dyn WeightSource>,
    /// What is merged into weights that are read; it stands beside those that were kept.
    pub loras: Option<&'a Loras>,
    /// What else stands beside weights, wherever they come from.
    pub adapters: Option<&'a dyn AdapterSource>,
    /// Where weights are kept that are read, and where components are built from that have been before.
    pub kept: Option<&'a KeptWeights>,
}

/// What the kernels multiply with of another source, rounded.
struct RoundedWeights<'a>(&'a dyn WeightSource, RoundedTo);

impl WeightSource for RoundedWeights<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.0.tensor(name, shape)
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        if computation.backend == Backend::Kernels
            && Packed::can_be_rounded(shape)
            && let Some(packed) = Packed::rounded(&self.0.tensor(name, shape)?, self.1)?
        {
            return Ok(Weight::new(Arc::new(packed)));
        }
        self.0.weight(name, shape, computation)
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn device(&self) -> &Device {
        self.0.device()
    }
}

impl<'a> Loader<'a> {
    /// Of files alone, with nothing on top: all in f32, computed as the device does it.
    pub fn new(files: &'a ModelFiles, device: &'a Device) -> Self {
        Self {
            files,
            device,
            weights: DType::F32,
            held: Held::AsAsked,
            activations: DType::F32,
            backend: None,
            products: None,
            headers_alone: false,
            source: None,
            loras: None,
            adapters: None,
            kept: None,
        }
    }
}

impl Loader<'_> {
    /// The same, all in f32.
    #[must_use]
    pub fn in_f32(self) -> Self {
        Self { weights: DType::F32, held: Held::AsAsked, activations: DType::F32, ..self }
    }

    /// The same, with no weight rounded.
    #[must_use]
    pub fn unrounded(self) -> Self {
        Self { held: if matches!(self.held, Held::Rounded(_)) { Held::AsStored } else { self.held }, ..self }
    }

    /// Builds a component from the weights in its folder, and gives the names of its files too; from weights that were kept, or
    /// that come from elsewhere, of no files. Tensors under the prefixes `unused` may be left alone.
    ///
    /// # Errors
    /// If the weights cannot be had, or are not those that are asked for: all that did not fit is in the message.
    pub fn load<T>(
        &self,
        component: &str,
        unused: &[&str],
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<(T, Vec<String>)> {
        if let Some(store) = self.kept.and_then(|kept| kept.get(component)) {
            let beside = self.loras.map(|loras| loras.beside(component, store.as_ref()));
            let source = beside.as_ref().map_or(store.as_ref() as &dyn WeightSource, |beside| beside);
            return Ok((self.built(component, source, build)?, Vec::new()));
        }
        if let Some(source) = self.source {
            let built = match self.held {
                Held::Rounded(to) => self.built(component, &RoundedWeights(source, to), build)?,
                Held::AsAsked | Held::AsStored => self.built(component, source, build)?,
            };
            return Ok((built, Vec::new()));
        }
        self.load_from(self.open(component)?, component, unused, build)
    }

    /// The weights in a component's folder, of which headers alone are read so far.
    ///
    /// # Errors
    /// If there are none in a form that is read, or a file is damaged.
    pub fn open(&self, component: &str) -> Result<Checkpoint> {
        let precision = if self.weights == DType::F16 { Precision::Half } else { Precision::Full };
        Checkpoint::open(self.files, component, precision, self.weights, self.device)
    }

    /// Builds a component from weights that were opened otherwise.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from<T>(
        &self,
        checkpoint: Checkpoint,
        component: &str,
        unused: &[&str],
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<(T, Vec<String>)> {
        let names = checkpoint.file_names().to_vec();
        let checkpoint = if self.headers_alone { checkpoint.headers_alone() } else { checkpoint };
        let checkpoint = checkpoint.held(self.held);
        let merged = self.loras.map(|loras| loras.over(component, &checkpoint));
        let source = merged.as_ref().map_or(&checkpoint as &dyn WeightSource, |merged| merged);
        let recorder = self.kept.map(|kept| (kept, WeightRecorder::new(source)));
        let built = match &recorder {
            Some((_, recorder)) => self.built(component, recorder, build),
            None => self.built(component, source, build),
        };
        let recorded = recorder.map(|(kept, recorder)| (kept, recorder.finish()));
        let built = checkpoint.finish_with(built, unused)?;
        if let Some((kept, store)) = recorded {
            kept.keep(component, store);
        }
        Ok((built, names))
    }

    /// A component from the weights of a source, with the adapters beside them.
    fn built<T>(
        &self,
        component: &str,
        source: &dyn WeightSource,
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<T> {
        match self.adapters {
            Some(adapters) => build(&self.computed(&WithAdapters { adapters, component, source })),
            None => build(&self.computed(source)),
        }
    }

    fn computed<'s>(&self, source: &'s dyn WeightSource) -> Weights<'s> {
        let weights = Weights::new(source);
        let weights = match self.backend {
            Some(backend) => weights.with_backend(backend),
            None => weights,
        };
        match self.products {
            Some(products) => weights.with_products(products),
            None => weights,
        }
    }
}
