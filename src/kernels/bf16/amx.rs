//! The products of whole tiles that Intel's AMX has: 16 rows and 32 bf16 times 32 bf16 and 16 columns, in one instruction.
//!
//! The compiler has no stable names for these instructions, so they are written as assembly.

use super::block::{Block, Sums};
use super::pairs::{TILE, TILE_LEN};
use std::arch::asm;

/// From a row of a tile in memory to the next, in bytes: 32 bf16, or 16 f32.
const ROW_BYTES: usize = 64;

/// While it lives, the thread's eight tile registers have 16 rows of 64 bytes.
pub(super) struct Tiles(());

impl Tiles {
    pub fn configure() -> Self {
        /// A configuration as `LDTILECFG` reads it: the palette; bytes of a row of each tile, 16 bits each, from byte 16; rows
        /// of each tile from byte 48.
        #[repr(align(64))]
        struct Configuration([u8; 64]);
        const CONFIGURATION: Configuration = {
            let mut bytes = [0; 64];
            bytes[0] = 1;
            let mut tile = 0;
            while tile < 8 {
                bytes[16 + 2 * tile] = ROW_BYTES as u8;
                bytes[48 + tile] = TILE as u8;
                tile += 1;
            }
            Configuration(bytes)
        };
        static IN_MEMORY: Configuration = CONFIGURATION;
        // SAFETY: whoever uses AMX has asked whether it is available; the configuration is a valid one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) IN_MEMORY.0.as_ptr(), options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the registers are in use on this thread by this value alone.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Four tiles of sums, two tiles of each factor at a time.
///
/// # Safety
/// The tiles are configured, the factors have all tiles of the block, and the sums all its rows.
pub(super) unsafe fn multiply(block: Block<'_>, sums: Sums) {
    let left = block.left.as_ptr();
    let right = block.right.as_ptr();
    // SAFETY: what is read and written lies in the block's tiles and rows, as the caller promises.
    unsafe {
        asm!(
            "tileloadd tmm0, [{start_0} + {start_row}]",
            "tileloadd tmm1, [{start_0} + {start_row} + 64]",
            "tileloadd tmm2, [{start_1} + {start_row}]",
            "tileloadd tmm3, [{start_1} + {start_row} + 64]",
            "test {steps}, {steps}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{left_0} + {row}]",
            "tileloadd tmm6, [{right_0} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right_1} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{left_1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left_0}, 1024",
            "add {left_1}, 1024",
            "add {right_0}, 1024",
            "add {right_1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "3:",
            "tilestored [{out_0} + {out_row}], tmm0",
            "tilestored [{out_0} + {out_row} + 64], tmm1",
            "tilestored [{out_1} + {out_row}], tmm2",
            "tilestored [{out_1} + {out_row} + 64], tmm3",
            start_0 = in(reg) sums.start.0,
            start_1 = in(reg) sums.start.0.add(TILE * sums.start.1),
            start_row = in(reg) sums.start.1 * size_of::<f32>(),
            left_0 = inout(reg) left => _,
            left_1 = inout(reg) left.add(block.steps * TILE_LEN) => _,
            right_0 = inout(reg) right => _,
            right_1 = inout(reg) right.add(block.panel) => _,
            row = in(reg) ROW_BYTES,
            steps = inout(reg) block.steps => _,
            out_0 = in(reg) sums.out.0,
            out_1 = in(reg) sums.out.0.add(TILE * sums.out.1),
            out_row = in(reg) sums.out.1 * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}
