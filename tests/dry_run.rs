//! Runs that compute nothing, whose memory is known in closed form.

use candle_core::{DType, Device, Tensor};
use tweedie::Result;
use tweedie::kernels::{
    ConvGeometry, MatmulPrecision, PackedWeight, RecyclingAllocator, conv2d_packed, conv2d_packed_plus, dry_run,
    dry_run_bytes, is_dry_run, silu,
};

#[global_allocator]
static ALLOCATOR: RecyclingAllocator = RecyclingAllocator;

/// The bytes of the maps here: a size that blocks have exactly.
const MAP: u64 = 8 << 20;

/// Small blocks, such as shapes.
const BESIDE: u64 = 64 << 10;

fn map() -> Result<Tensor> {
    Ok(Tensor::ones((1, 128, 256, 64), DType::F32, &Device::Cpu)?)
}

fn is_about(found: u64, maps: u64) -> bool {
    (maps * MAP..=maps * MAP + BESIDE).contains(&found)
}

#[test]
fn what_is_in_use_at_once_is_counted() -> Result<()> {
    let x = map()?;
    // What comes out of one goes into the next, which takes the place of what went into it.
    let (y, most) = dry_run(|| {
        let mut y = silu(&x)?;
        for _ in 0..4 {
            y = silu(&y)?;
        }
        Ok::<_, candle_core::Error>(y)
    });
    assert_eq!(y?.dims(), x.dims());
    assert!(is_about(most, 2), "{most}");
    // All are held.
    let (all, most) = dry_run(|| (0..5).map(|_| silu(&x)).collect::<std::result::Result<Vec<_>, _>>());
    assert_eq!(all?.len(), 5);
    assert!(is_about(most, 5), "{most}");
    Ok(())
}

/// A block that is free is kept and takes memory still; one of its size takes its place, one of another does not.
#[test]
fn what_the_allocator_keeps_is_counted() -> Result<()> {
    let (x, half) = (map()?, map()?.narrow(1, 0, 64)?.contiguous()?);
    let (result, most) = dry_run(|| {
        drop(silu(&x)?);
        drop(silu(&x)?);
        silu(&half)
    });
    result?;
    assert!((MAP + MAP / 2..=MAP + MAP / 2 + BESIDE).contains(&most), "{most}");
    // Beyond what is kept at most, the largest blocks go.
    let (result, most) = dry_run(|| {
        let many = (0..60).map(|_| silu(&x)).collect::<std::result::Result<Vec<_>, _>>()?;
        drop(many);
        silu(&half)
    });
    result?;
    assert!(is_about(most, 60), "{most}");
    Ok(())
}

#[test]
fn layers_give_the_right_shape_and_weights_take_their_place() -> Result<()> {
    let x = map()?;
    let (result, most) = dry_run(|| {
        // [32, 64, 3, 3] in f32 is laid out in 72 KiB.
        let weight = PackedWeight::new(&Tensor::zeros((32, 64, 3, 3), DType::F32, &Device::Cpu)?)?;
        let bias = Tensor::zeros(32, DType::F32, &Device::Cpu)?;
        conv2d_packed(&x, &weight, &bias, ConvGeometry::square(3, 2, 1))
    });
    assert_eq!(result?.dims(), [1, 64, 128, 32]);
    assert!((MAP / 8 + (72 << 10)..=MAP / 8 + (72 << 10) * 2 + BESIDE).contains(&most), "{most}");
    Ok(())
}

/// Threads keep the tiles of a convolution to themselves, three million values or a little more, while its result is there already;
/// afterwards the allocator has them. Rounded products have other ways.
#[test]
fn what_threads_have_for_themselves_is_counted() -> std::result::Result<(), Box<dyn std::error::Error>> {
    const TILES: u64 = 12 << 20;
    let x = map()?;
    let convolve = |products, residual: Option<&Tensor>| -> Result<(u64, u64)> {
        let weight = PackedWeight::with_products(&Tensor::zeros((64, 64, 3, 3), DType::F32, &Device::Cpu)?, products)?;
        let bias = Tensor::zeros(64, DType::F32, &Device::Cpu)?;
        let (after, most) = dry_run(|| {
            let geometry = ConvGeometry::square(3, 1, 1);
            drop(match residual {
                Some(residual) => conv2d_packed_plus(&x, &weight, &bias, residual, geometry)?,
                None => conv2d_packed(&x, &weight, &bias, geometry)?,
            });
            Ok::<_, candle_core::Error>(dry_run_bytes())
        });
        Ok((after?, most))
    };
    let plain = convolve(MatmulPrecision::Full, None)?;
    let (after, most) = plain;
    // Kernels and sums are of each thread, and so are tiles where there are many threads.
    let others = std::thread::available_parallelism()?.get() as u64 * (3 << 20);
    assert!((MAP + TILES..MAP + TILES + others).contains(&most) && after == most, "{after} {most}");
    assert_eq!(convolve(MatmulPrecision::Full, Some(&x))?, plain);
    assert!(is_about(convolve(MatmulPrecision::Bf16, None)?.1, 1));
    Ok(())
}

/// It is of its thread, holds nothing afterwards, and ends where its work panics.
#[test]
fn a_dry_run_ends() -> Result<()> {
    let x = map()?;
    let caught = std::panic::catch_unwind(|| dry_run(|| assert!(!is_dry_run(), "in it")));
    assert!(caught.is_err() && !is_dry_run() && dry_run_bytes() == 0);
    let (elsewhere, _) = dry_run(|| {
        assert!(is_dry_run());
        std::thread::scope(|scope| scope.spawn(is_dry_run).join().unwrap_or(true))
    });
    assert!(!elsewhere);
    // After it, values are computed as ever.
    let y = silu(&x)?.flatten_all()?.to_vec1::<f32>()?;
    assert!(y.iter().all(|y| (y - 0.731_058_6).abs() < 1e-6));
    let ((_, within), most) = dry_run(|| dry_run(|| silu(&x)));
    assert_eq!(within, 0);
    assert!(is_about(most, 1), "{most}");
    Ok(())
}

/// In the environment of a child in which no other test runs.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ALONE: &str = "TWEEDIE_TEST_ALONE";

/// What the system's allocator keeps of small blocks it returns when it is told to: so it is counted, and so it is.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn free_small_blocks_return_to_the_system() -> std::result::Result<(), Box<dyn std::error::Error>> {
    if std::env::var_os(ALONE).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe()?);
        child.args(["--exact", "free_small_blocks_return_to_the_system", "--test-threads", "1"]).env(ALONE, "1");
        let output = child.output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return Ok(());
    }
    const BLOCK: usize = 100 << 10;
    const BLOCKS: usize = 640;
    let blocks = || (0..BLOCKS).map(|_| vec![1u8; BLOCK]).collect::<Vec<_>>();
    let ((kept, returned), most) = dry_run(|| {
        drop(blocks());
        let kept = dry_run_bytes();
        RecyclingAllocator::trim();
        (kept, dry_run_bytes())
    });
    assert!(kept >= (BLOCK * BLOCKS) as u64 && kept <= most, "{kept} of {most}");
    assert!(returned < BESIDE, "{returned}");

    let resident = || -> std::result::Result<usize, Box<dyn std::error::Error>> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("status has no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? << 10)
    };
    // The last one stays, so that the end of the heap does not become free.
    let mut blocks = blocks();
    let last = blocks.pop();
    let before = resident()?;
    drop(blocks);
    RecyclingAllocator::trim();
    let after = resident()?;
    // Nearly all of it: there are pages that a block shares with the next.
    assert!(after + BLOCK * BLOCKS * 9 / 10 < before, "{after} of {before}");
    assert!(last.is_some_and(|last| last[BLOCK - 1] == 1));
    Ok(())
}
