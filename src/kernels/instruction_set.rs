//! Which instructions the kernels use: the best that the machine has, or the lower ones that `TWEEDIE_ISA` names.

use crate::{Error, ErrorKind, Result};
use std::fmt;
use std::sync::OnceLock;

/// A level of vector instructions; a higher one has all of the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What the compiler makes of plain loops for any machine of this architecture.
    Portable,
    /// AVX2 with fused multiply-add and conversion of f16: registers of eight f32.
    Avx2,
    /// AVX-512 (F, BW, DQ and VL): registers of sixteen f32.
    Avx512,
    /// AVX-512 with products of pairs of bf16.
    Avx512Bf16,
    /// And with AMX's products of tiles of bf16.
    Amx,
}

/// Names the highest instruction set to use.
const VARIABLE: &str = "TWEEDIE_ISA";

impl InstructionSet {
    /// All, the lowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// As `TWEEDIE_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether it has instructions for products of bf16. Whether these are faster than those of f32 is another question
    /// ([`bf16_speedup`](super::bf16_speedup)).
    pub fn multiplies_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// The best that this machine has.
    pub fn of_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! has {
                ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
            }
            let avx2 = has!("avx2", "fma", "f16c");
            if avx2 && has!("avx512f", "avx512bw", "avx512dq", "avx512vl") {
                let bf16 = has!("avx512bf16");
                #[cfg(target_os = "linux")]
                if bf16 && amx_is_available() {
                    return Self::Amx;
                }
                return if bf16 { Self::Avx512Bf16 } else { Self::Avx512 };
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// What `TWEEDIE_ISA` asks for, and without it the best of the machine.
    ///
    /// # Errors
    /// If the variable names no instruction set, or one that the machine does not have.
    pub fn from_environment() -> Result<Self> {
        let best = Self::of_machine();
        let Some(asked) = std::env::var_os(VARIABLE) else { return Ok(best) };
        let asked = asked.to_string_lossy().to_lowercase();
        let names = || Self::ALL.into_iter().filter(|&set| set <= best).map(Self::name).collect::<Vec<_>>().join(", ");
        Self::ALL.into_iter().find(|set| set.name() == asked && *set <= best).ok_or_else(|| {
            Error::unusable(ErrorKind::Device, VARIABLE, &asked, format!("this machine has {}", names()))
        })
    }

    /// What the kernels use; chosen once. An unusable `TWEEDIE_ISA` counts as none here: whoever starts the
    /// program asks [`Self::from_environment`] for the error.
    #[inline]
    pub fn in_use() -> Self {
        static IN_USE: OnceLock<InstructionSet> = OnceLock::new();
        *IN_USE.get_or_init(|| Self::from_environment().unwrap_or_else(|_| Self::of_machine()))
    }
}

/// Whether the machine has AMX's products of bf16, and the system lets this process use the registers: Linux wants to be asked, once
/// for all threads, since the registers make a thread's state larger by 8 KiB.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_available() -> bool {
    /// `ARCH_REQ_XCOMP_PERM`, and the number of the tiles' data among the parts of a thread's state.
    const REQUEST_PERMISSION: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    /// In the features of leaf 7.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let [highest, features] = [0, 7].map(std::arch::x86_64::__cpuid);
        let has = highest.eax >= 7 && features.edx & AMX_BF16 != 0 && features.edx & AMX_TILE != 0;
        // SAFETY: the call changes nothing but what this process may use.
        has && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    })
}

/// The processor's name for itself, and the numbers of its family, model and stepping, which tell machines apart whose names a
/// virtual machine hides. Elsewhere than on x86-64, the architecture.
pub fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        const FEATURES: u32 = 1;
        const EXTENSIONS: u32 = 0x8000_0000;
        const NAME: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
        let signature = __cpuid(FEATURES).eax;
        if __cpuid(EXTENSIONS).eax >= *NAME.end() {
            let registers = NAME.map(__cpuid).flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
            let name: Vec<u8> = registers.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
            return format!("{}, {signature:x}", String::from_utf8_lossy(&name).trim());
        }
        format!("x86-64, {signature:x}")
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
