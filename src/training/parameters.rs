//! The trainable parameters of a network.

use super::initialization::initial_values;
use crate::layers::WeightSource;
use crate::{Error, ErrorKind, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

/// Where the values before the first step come from.
enum Start<'a> {
    Random { seed: u64, zero: fn(&str) -> bool },
    Source(&'a dyn WeightSource),
}

/// A [`WeightSource`] that makes a variable of every tensor that a network asks for.
///
/// [`Self::finish`] ends it when the network is built.
pub struct ParameterSource<'a> {
    start: Start<'a>,
    device: Device,
    variables: RefCell<BTreeMap<String, Var>>,
}

impl<'a> ParameterSource<'a> {
    /// Parameters that start from `weights`, or else on the CPU with initial values drawn from `seed`.
    pub fn new(weights: Option<&'a dyn WeightSource>, seed: u64) -> Self {
        weights.map_or_else(|| Self::random(seed, &Device::Cpu), Self::from_weights)
    }

    /// Parameters with PyTorch's initial values, drawn from `seed`.
    pub fn random(seed: u64, device: &Device) -> Self {
        Self { start: Start::Random { seed, zero: |_| false }, device: device.clone(), variables: RefCell::default() }
    }

    /// The same, but for drawn parameters that start at zero: those whose names `zero` says. Where they are the last ones of residual
    /// blocks, every block starts as the identity (Goyal et al. 2017, section 5.1).
    #[must_use]
    pub fn with_zeros(mut self, zero: fn(&str) -> bool) -> Self {
        if let Start::Random { zero: zeros, .. } = &mut self.start {
            *zeros = zero;
        }
        self
    }

    /// Parameters that start from a checkpoint, or whatever else gives weights.
    pub fn from_weights(weights: &'a dyn WeightSource) -> Self {
        let device = weights.device().clone();
        Self { start: Start::Source(weights), device, variables: RefCell::default() }
    }

    /// The parameters that were asked for.
    ///
    /// # Errors
    /// If there are none.
    pub fn finish(self) -> Result<Parameters> {
        Parameters::new(self.variables.into_inner())
    }
}

impl WeightSource for ParameterSource<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let mut variables = self.variables.borrow_mut();
        if let Some(variable) = variables.get(name) {
            return Ok(variable.as_tensor().clone());
        }
        let start = match self.start {
            Start::Random { zero, .. } if zero(name) => Tensor::zeros(shape, DType::F32, &self.device)?,
            Start::Random { seed, .. } => {
                let beside = name.strip_suffix("bias").and_then(|stem| variables.get(&format!("{stem}weight")));
                let values = initial_values(seed, name, shape, beside.map(|weight| weight.dims()))?;
                Tensor::from_vec(values, shape, &self.device)?
            }
            // A stand-in of a checkpoint is a view of one value; a variable has its own.
            Start::Source(source) => source.tensor(name, shape)?.to_dtype(DType::F32)?.contiguous()?,
        };
        let variable = Var::from_tensor(&start)?;
        let tensor = variable.as_tensor().clone();
        variables.insert(name.into(), variable);
        Ok(tensor)
    }

    fn contains(&self, name: &str) -> bool {
        match self.start {
            Start::Random { .. } => true,
            Start::Source(source) => source.contains(name),
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

/// Where one parameter lies among the values of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values.
    pub range: Range<usize>,
}

/// The order in which the values of all parameters stand in one flat array: by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatLayout {
    slots: Vec<Slot>,
}

impl FlatLayout {
    fn new<'a>(parameters: impl Iterator<Item = (&'a String, &'a [usize])>) -> Self {
        let mut end = 0;
        let slot = |(name, shape): (&String, &[usize])| {
            let start = end;
            end += shape.iter().product::<usize>();
            Slot { name: name.clone(), shape: shape.to_vec(), range: start..end }
        };
        Self { slots: parameters.map(slot).collect() }
    }

    /// Every parameter's place.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The number of values of all parameters.
    pub fn len(&self) -> usize {
        self.slots.last().map_or(0, |slot| slot.range.end)
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Flat values as tensors under the parameters' names, on the CPU.
    ///
    /// # Errors
    /// Never: a parameter's range has as many values as its shape.
    ///
    /// # Panics
    /// If there are fewer values than the layout has.
    pub fn tensors(&self, values: &[f32]) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |slot: &Slot| {
            let tensor = Tensor::from_slice(&values[slot.range.clone()], slot.shape.as_slice(), &Device::Cpu)?;
            Ok((slot.name.clone(), tensor))
        };
        self.slots.iter().map(tensor).collect()
    }
}

/// A network's parameters: candle's variables, and their values in one flat array, on which optimisers work.
#[derive(Debug)]
pub struct Parameters {
    variables: Vec<Var>,
    layout: FlatLayout,
    values: Vec<f32>,
}

impl Parameters {
    fn new(variables: BTreeMap<String, Var>) -> Result<Self> {
        if variables.is_empty() {
            return Err(Error::invalid("the number of parameters", 0, "the network has nothing to train"));
        }
        let layout = FlatLayout::new(variables.iter().map(|(name, var)| (name, var.dims())));
        let mut values = vec![0.0; layout.len()];
        for (slot, variable) in layout.slots.iter().zip(variables.values()) {
            values[slot.range.clone()].copy_from_slice(&variable.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(Self { variables: variables.into_values().collect(), layout, values })
    }

    /// Parameters of no network that exists yet, which start from these values.
    ///
    /// # Errors
    /// If there are none.
    pub fn from_tensors(start: &BTreeMap<String, Tensor>) -> Result<Self> {
        let variable = |(name, tensor): (&String, &Tensor)| {
            Ok((name.clone(), Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?))
        };
        Self::new(start.iter().map(variable).collect::<Result<_>>()?)
    }

    /// A parameter as a network takes it: it changes with every [`Self::update`].
    pub fn variable(&self, name: &str) -> Option<&Tensor> {
        let place = self.layout.slots.iter().position(|slot| slot.name == name)?;
        self.variables.get(place).map(Var::as_tensor)
    }

    /// Where the network is.
    pub fn device(&self) -> &Device {
        self.variables.first().map_or(&Device::Cpu, |variable| variable.device())
    }

    /// The order of [`Self::values`].
    pub fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    /// The values of all parameters.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Changes the values, then gives them to the network.
    ///
    /// # Errors
    /// If they cannot be copied to the device.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) -> Result<()> {
        change(&mut self.values);
        for (slot, variable) in self.layout.slots.iter().zip(&self.variables) {
            let values = &self.values[slot.range.clone()];
            variable.set(&Tensor::from_slice(values, slot.shape.as_slice(), variable.device())?)?;
        }
        Ok(())
    }

    /// Adds every parameter's gradient to `sums`, which is laid out as the values are.
    ///
    /// # Errors
    /// If a parameter has no gradient: the loss does not depend on it, or an operation on the way has no
    /// derivative.
    pub fn add_gradients(&self, gradients: &GradStore, sums: &mut [f32]) -> Result<()> {
        let mut without = Vec::new();
        for (slot, variable) in self.layout.slots.iter().zip(&self.variables) {
            let Some(gradient) = gradients.get(variable.as_tensor()) else {
                without.push(slot.name.as_str());
                continue;
            };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            sums[slot.range.clone()].iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
        }
        if without.is_empty() {
            return Ok(());
        }
        let fix = "the loss does not depend on it, or an operation on the way to it has no derivative; \
                   take the layer out of the network or make the operation differentiable";
        Err(Error::invalid("a parameter without a gradient", without.join(", "), fix))
    }
}

/// Flat values as a [`WeightSource`]: a network made from it is a copy that training does not change.
#[derive(Debug)]
pub struct FlatWeights {
    tensors: BTreeMap<String, Tensor>,
    device: Device,
}

impl FlatWeights {
    /// The tensors of `values` on a device.
    ///
    /// # Errors
    /// Never: a parameter's range has as many values as its shape.
    ///
    /// # Panics
    /// If there are fewer values than the layout has.
    pub fn new(layout: &FlatLayout, values: &[f32], device: &Device) -> Result<Self> {
        Ok(Self { tensors: layout.tensors(values)?, device: device.clone() })
    }
}

impl WeightSource for FlatWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.to_device(&self.device)?),
            found => {
                let found = found.map_or("absent".into(), |tensor| format!("{:?}", tensor.dims()));
                Err(Error::unusable(
                    ErrorKind::Model,
                    format!("the shape of {name}"),
                    found,
                    format!("the network needs {shape:?}"),
                ))
            }
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Linear, Weights};

    fn linear() -> Result<(Linear, Parameters)> {
        let source = ParameterSource::random(1, &Device::Cpu);
        let layer = Linear::new(&Weights::new(&source).at("layer"), 3, 2)?;
        Ok((layer, source.finish()?))
    }

    #[test]
    fn the_network_sees_changed_values() -> Result<()> {
        let (layer, mut parameters) = linear()?;
        let x = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
        parameters.update(|values| values.fill(0.5))?;
        assert_eq!(layer.forward(&x)?.to_vec2::<f32>()?, [[2.0, 2.0]]);
        let names: Vec<_> = parameters.layout().slots().iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!((names, parameters.layout().len()), (vec!["layer.bias", "layer.weight"], 8));
        Ok(())
    }

    #[test]
    fn gradients_add_up_and_a_missing_one_is_named() -> Result<()> {
        let (layer, parameters) = linear()?;
        let x = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
        let gradients = layer.forward(&x)?.sum_all()?.backward()?;
        let mut sums = vec![1.0; 8];
        parameters.add_gradients(&gradients, &mut sums)?;
        assert_eq!(sums, [2.0, 2.0, 2.0, 3.0, 4.0, 2.0, 3.0, 4.0]);
        let unrelated = Var::from_tensor(&x)?.sum_all()?.backward()?;
        let message = parameters.add_gradients(&unrelated, &mut sums).map_err(|e| e.to_string());
        assert!(message.is_err_and(|m| m.contains("layer.bias, layer.weight")));
        Ok(())
    }

    #[test]
    fn the_seed_decides() -> Result<()> {
        assert_eq!(linear()?.1.values(), linear()?.1.values());
        let other = ParameterSource::random(2, &Device::Cpu);
        Linear::new(&Weights::new(&other).at("layer"), 3, 2)?;
        assert_ne!(linear()?.1.values(), other.finish()?.values());
        Ok(())
    }
}
