//! Where and in which number format to compute.

use candle_core::utils::{cuda_is_available, metal_is_available};
use std::fmt;
use std::str::FromStr;
use tweedie::kernels::InstructionSet;
use tweedie::{DType, Device, Error, Result};

/// A device as a user asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA or Metal if this build has it and the machine too, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
    /// The Metal device.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => match text.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(Self::Cuda(n)),
                None => Err("choose auto, cpu, cuda, cuda:N or metal".into()),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// The device.
    ///
    /// # Errors
    /// If this build or this machine does not have it.
    pub fn open(self) -> Result<Device> {
        let missing = |name: &str, built: bool, error: candle_core::Error| {
            // Behind the first line is candle's backtrace, if the environment asks for one.
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            let fix = match built {
                true => "this program can use one: look whether the machine has it and its driver sees it".to_owned(),
                false => format!("build with --features {name} on a machine that has it"),
            };
            Error::invalid("the device", self, format!("{reason}; {fix}, or use --device cpu"))
        };
        InstructionSet::from_environment()?;
        match self {
            Self::Auto => {
                if let Ok(device) = Device::new_cuda(0) {
                    return Ok(device);
                }
                Ok(Device::new_metal(0).unwrap_or(Device::Cpu))
            }
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) => Device::new_cuda(n).map_err(|e| missing("cuda", cuda_is_available(), e)),
            Self::Metal => Device::new_metal(0).map_err(|e| missing("metal", metal_is_available(), e)),
        }
    }
}

/// A number format as a user asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DTypeChoice {
    /// f16 on other devices than the CPU. There f32; but for large models, of 200 MB and more in f32, bf16 if the machine has
    /// instructions for its products, and else for each tensor the format that it is stored in, where that is f16 or bf16:
    /// what is computed is the same as with f32, in half the memory.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, five of them exponent.
    F16,
    /// 16 bits, eight of them exponent.
    BF16,
}

impl FromStr for DTypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            _ => Err("choose auto, f32, f16 or bf16".into()),
        }
    }
}

/// The number formats of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumberFormat {
    /// Of matrices in memory.
    pub weights: DType,
    /// Whether those that are stored in half precision stay as they are, which changes no result.
    pub keeps_halves: bool,
    /// Of activations, which are f32 on the CPU whatever the weights are stored in.
    pub activations: DType,
}

impl NumberFormat {
    pub(crate) const F32: Self = Self { weights: DType::F32, keeps_halves: false, activations: DType::F32 };

    /// What results depend on.
    pub(crate) fn name(self) -> &'static str {
        match self.weights {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            _ => "f32",
        }
    }
}

impl DTypeChoice {
    /// `parameters` counts those of the denoising network; it is asked only where they matter.
    ///
    /// # Errors
    /// If they cannot be counted.
    pub(crate) fn on(self, device: &Device, parameters: impl FnOnce() -> Result<usize>) -> Result<NumberFormat> {
        /// The pictures of smaller models are the same on every machine.
        const LARGE: usize = 50_000_000;
        if let Some(weights) = self.of_any_model(device) {
            let activations = if device.is_cpu() { DType::F32 } else { weights };
            return Ok(NumberFormat { weights, activations, ..NumberFormat::F32 });
        }
        let large = parameters()? >= LARGE;
        Ok(match InstructionSet::in_use().multiplies_bf16() {
            true if large => NumberFormat { weights: DType::BF16, ..NumberFormat::F32 },
            multiplies_bf16 => NumberFormat { keeps_halves: large && !multiplies_bf16, ..NumberFormat::F32 },
        })
    }

    /// The format of weights, where it does not depend on the model.
    pub(crate) fn of_any_model(self, device: &Device) -> Option<DType> {
        match (self, device.is_cpu()) {
            (Self::Auto, true) => None,
            (Self::Auto, false) | (Self::F16, _) => Some(DType::F16),
            (Self::F32, _) => Some(DType::F32),
            (Self::BF16, _) => Some(DType::BF16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_formats_follow_size_and_machine() -> Result<()> {
        let of = |parameters| DTypeChoice::Auto.on(&Device::Cpu, || Ok(parameters));
        assert_eq!(of(49_999_999)?, NumberFormat::F32);
        let multiplies_bf16 = InstructionSet::in_use().multiplies_bf16();
        let large = of(50_000_000)?;
        assert_eq!(large.weights, if multiplies_bf16 { DType::BF16 } else { DType::F32 });
        assert_eq!((large.keeps_halves, large.activations), (!multiplies_bf16, DType::F32));
        let asked = |choice: DTypeChoice| choice.on(&Device::Cpu, || unreachable!("it does not matter"));
        assert_eq!(asked(DTypeChoice::F32)?, NumberFormat::F32);
        assert_eq!(asked(DTypeChoice::F16)?, NumberFormat { weights: DType::F16, ..NumberFormat::F32 });
        Ok(())
    }
}
