//! Where and in which number format to compute.

use crate::bf16_products;
use candle_core::utils::{cuda_is_available, metal_is_available};
use std::fmt;
use std::str::FromStr;
use tweedie::checkpoints::Held;
use tweedie::kernels::{InstructionSet, MatmulPrecision, RoundedTo};
use tweedie::layers::Backend;
use tweedie::{DType, Device, Error, ErrorKind, Result};

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
            Error::unusable(ErrorKind::Device, "the device", self, format!("{reason}; {fix}, or use `device` cpu"))
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

/// Whether the kernels compute on a device, unless it was said what does.
pub(crate) fn kernels_compute(given: Option<Backend>, device: &Device) -> bool {
    given.unwrap_or_else(|| Backend::for_device(device)) == Backend::Kernels
}

/// A number format as a user asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DTypeChoice {
    /// f16 on other devices than the CPU. There f32; but for large models, of 200 MB and more in f32, bf16 if the machine
    /// multiplies it clearly faster (it has AMX, or so it was measured), and else for each tensor the format that it is stored in,
    /// where that is f16 or bf16: what is computed is the same as with f32, in half the memory.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, five of them exponent.
    F16,
    /// 16 bits, eight of them exponent. On the CPU activations are rounded too, in products, where that is clearly faster.
    BF16,
    /// 8 bits in blocks of 32 with a scale, in the denoising network and the text encoders, on the CPU: a half of f16's memory, and
    /// pictures that are a little different. Weights that are stored in blocks stay as they are. In linear layers activations are
    /// rounded too, and products summed in whole numbers.
    Q8,
    /// The same in 4 bits: half of that memory again, and pictures that show the same and are clearly others.
    Q4,
}

impl fmt::Display for DTypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl FromStr for DTypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            _ => Err("choose auto, f32, f16, bf16, q8 or q4".into()),
        }
    }
}

/// The number formats of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumberFormat {
    /// Of matrices in memory.
    pub weights: DType,
    /// In which form those that are stored otherwise are held.
    pub held: Held,
    /// How exactly the factors of products are taken on the CPU.
    pub products: MatmulPrecision,
    /// Of activations, which are f32 on the CPU whatever the weights are stored in.
    pub activations: DType,
}

impl NumberFormat {
    pub(crate) const F32: Self =
        Self { weights: DType::F32, held: Held::AsAsked, products: MatmulPrecision::Full, activations: DType::F32 };

    /// What results depend on.
    pub(crate) fn name(self) -> &'static str {
        match (self.weights, self.held) {
            (_, Held::Rounded(RoundedTo::EightBits)) => "q8",
            (_, Held::Rounded(RoundedTo::FourBits)) => "q4",
            (DType::F16, _) => "f16",
            (DType::BF16, _) => "bf16",
            _ => "f32",
        }
    }
}

impl DTypeChoice {
    /// `products` are those that somebody asks for, whatever is fastest. `parameters` counts those of the denoising network; it
    /// is asked only where they matter.
    ///
    /// # Errors
    /// If they cannot be counted.
    pub(crate) fn on(
        self,
        device: &Device,
        products: Option<MatmulPrecision>,
        parameters: impl FnOnce() -> Result<usize>,
    ) -> Result<NumberFormat> {
        if matches!(self, Self::Q8 | Self::Q4) && !device.is_cpu() {
            let fix = "the CPU alone multiplies with weights of so few bits; take f16, or `device` cpu";
            return Err(Error::invalid("`dtype`", self, fix));
        }
        if let (Some(weights), false) = (self.of_any_model(device), device.is_cpu()) {
            return Ok(NumberFormat { weights, activations: weights, ..NumberFormat::F32 });
        }
        self.on_cpu(Cpu { set: InstructionSet::in_use(), bf16_pays: bf16_products::pay }, products, parameters)
    }

    fn on_cpu(
        self,
        cpu: Cpu,
        products: Option<MatmulPrecision>,
        parameters: impl FnOnce() -> Result<usize>,
    ) -> Result<NumberFormat> {
        /// The pictures of smaller models are the same on every machine.
        const LARGE: usize = 50_000_000;
        let stated = NumberFormat { products: products.unwrap_or_default(), ..NumberFormat::F32 };
        let large = || Ok::<_, Error>(parameters()? >= LARGE);
        Ok(match self {
            Self::F32 => stated,
            Self::F16 => NumberFormat { weights: DType::F16, ..stated },
            Self::Q8 => NumberFormat { held: Held::Rounded(RoundedTo::EightBits), ..NumberFormat::F32 },
            Self::Q4 => NumberFormat { held: Held::Rounded(RoundedTo::FourBits), ..NumberFormat::F32 },
            Self::BF16 => {
                let products = match products {
                    Some(products) => products,
                    // A small model is not worth a measurement.
                    None if cpu.set == InstructionSet::Avx512Bf16 && !large()? => MatmulPrecision::Full,
                    None => cpu.fastest_products(),
                };
                NumberFormat { weights: DType::BF16, products, ..stated }
            }
            Self::Auto if !large()? => stated,
            Self::Auto => match products.unwrap_or_else(|| cpu.fastest_products()) {
                products @ MatmulPrecision::Bf16 => NumberFormat { weights: DType::BF16, products, ..stated },
                products @ MatmulPrecision::Full => NumberFormat { held: Held::AsStored, products, ..stated },
            },
        })
    }

    /// The format of weights, where it does not depend on the model.
    pub(crate) fn of_any_model(self, device: &Device) -> Option<DType> {
        match (self, device.is_cpu()) {
            (Self::Auto, true) => None,
            // What is stored in half precision is small to fetch, and has all the bits that are kept.
            (Self::Auto, false) | (Self::F16 | Self::Q8 | Self::Q4, _) => Some(DType::F16),
            (Self::F32, _) => Some(DType::F32),
            (Self::BF16, _) => Some(DType::BF16),
        }
    }
}

/// What the choice of number formats has to know of a CPU.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    set: InstructionSet,
    /// Whether products of bf16 are clearly faster; asked only where the instruction set leaves that open, since the answer may
    /// have to be measured.
    bf16_pays: fn() -> bool,
}

impl Cpu {
    /// AMX has many times the products of f32. AVX-512's of bf16 are twice as many as those of f32 on some machines; on others as
    /// many, and then f32 wins by Winograd's convolutions.
    fn fastest_products(self) -> MatmulPrecision {
        match self.set {
            InstructionSet::Amx => MatmulPrecision::Bf16,
            InstructionSet::Avx512Bf16 if (self.bf16_pays)() => MatmulPrecision::Bf16,
            _ => MatmulPrecision::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = 49_999_999;
    const LARGE: usize = 50_000_000;

    /// In this order: weights, in which form they are held, products.
    fn chosen(
        choice: DTypeChoice,
        set: InstructionSet,
        bf16_pays: fn() -> bool,
        products: Option<MatmulPrecision>,
        parameters: usize,
    ) -> Result<(DType, Held, MatmulPrecision)> {
        let format = choice.on_cpu(Cpu { set, bf16_pays }, products, || Ok(parameters))?;
        assert_eq!(format.activations, DType::F32);
        Ok((format.weights, format.held, format.products))
    }

    fn never() -> bool {
        unreachable!("nothing is measured for this")
    }

    const EXACT: (DType, Held, MatmulPrecision) = (DType::F32, Held::AsAsked, MatmulPrecision::Full);
    const AS_STORED: (DType, Held, MatmulPrecision) = (DType::F32, Held::AsStored, MatmulPrecision::Full);
    const ROUNDED: (DType, Held, MatmulPrecision) = (DType::BF16, Held::AsAsked, MatmulPrecision::Bf16);

    #[test]
    fn automatic_formats_follow_size_and_machine() -> Result<()> {
        use InstructionSet::{Amx, Avx512Bf16};
        for set in InstructionSet::ALL {
            assert_eq!(chosen(DTypeChoice::Auto, set, never, None, SMALL)?, EXACT, "{set}");
            let measured = set == Avx512Bf16;
            let large = |pays| chosen(DTypeChoice::Auto, set, pays, None, LARGE);
            let [slower, faster] =
                if measured { [large(|| false)?, large(|| true)?] } else { [large(never)?, large(never)?] };
            assert_eq!(slower, if set == Amx { ROUNDED } else { AS_STORED }, "{set}");
            assert_eq!(faster, if set >= Avx512Bf16 { ROUNDED } else { AS_STORED }, "{set}");
        }
        Ok(())
    }

    /// Whatever instructions a machine has: those products are taken that were asked for, and none of the weights is rounded for
    /// products that are not.
    #[test]
    fn products_that_are_asked_for_are_taken_on_every_machine() -> Result<()> {
        for set in InstructionSet::ALL {
            let full = |choice, parameters| chosen(choice, set, never, Some(MatmulPrecision::Full), parameters);
            assert_eq!(full(DTypeChoice::Auto, SMALL)?, EXACT);
            assert_eq!(full(DTypeChoice::Auto, LARGE)?, AS_STORED);
            assert_eq!(full(DTypeChoice::BF16, LARGE)?, (DType::BF16, Held::AsAsked, MatmulPrecision::Full));
            let rounded = |choice, parameters| chosen(choice, set, never, Some(MatmulPrecision::Bf16), parameters);
            assert_eq!(rounded(DTypeChoice::Auto, SMALL)?, (DType::F32, Held::AsAsked, MatmulPrecision::Bf16));
            assert_eq!(rounded(DTypeChoice::Auto, LARGE)?, ROUNDED);
        }
        Ok(())
    }

    #[test]
    fn stated_formats_are_as_stated() -> Result<()> {
        for set in InstructionSet::ALL {
            let asked = |choice: DTypeChoice| {
                choice.on_cpu(Cpu { set, bf16_pays: never }, None, || unreachable!("it does not matter"))
            };
            assert_eq!(asked(DTypeChoice::F32)?, NumberFormat::F32);
            assert_eq!(asked(DTypeChoice::F16)?, NumberFormat { weights: DType::F16, ..NumberFormat::F32 });
            for (choice, to) in [(DTypeChoice::Q8, RoundedTo::EightBits), (DTypeChoice::Q4, RoundedTo::FourBits)] {
                assert_eq!(asked(choice)?, NumberFormat { held: Held::Rounded(to), ..NumberFormat::F32 });
            }
            let products = if set == InstructionSet::Amx { MatmulPrecision::Bf16 } else { MatmulPrecision::Full };
            assert_eq!(
                chosen(DTypeChoice::BF16, set, never, None, SMALL)?,
                (DType::BF16, Held::AsAsked, products),
                "{set}"
            );
        }
        let faster = chosen(DTypeChoice::BF16, InstructionSet::Avx512Bf16, || true, None, LARGE)?;
        assert_eq!(faster, ROUNDED);
        Ok(())
    }
}
