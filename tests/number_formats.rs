//! How near pictures of rounded numbers are to those of f32.

use tweedie::images::Picture;
use tweedie::kernels::Products;
use tweedie_pipelines::{Builder, DTypeChoice, TextToImage, TextToImageRequest};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Peak signal-to-noise ratio in dB.
fn psnr(a: &Picture, b: &Picture) -> f64 {
    let squares: f64 = a.rgb().iter().zip(b.rgb()).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.rgb().len() as f64 / squares).log10()
}

fn pictures(builder: Builder<TextToImage>) -> TestResult<Vec<Picture>> {
    let request = TextToImageRequest {
        prompt: "a fox on a blue background".into(),
        steps: Some(8),
        num_images: 2,
        ..TextToImageRequest::default()
    };
    Ok(builder.build()?.generate(&request)?)
}

/// They were seen at 56 dB, and those of f16, which is what the embedded weights are, at no difference. The bound allows twice
/// the error.
#[test]
fn pictures_of_rounded_numbers_are_near_those_of_f32() -> TestResult {
    let exact = pictures(TextToImage::builder())?;
    let kinds = [
        ("weights in f16", TextToImage::builder().dtype(DTypeChoice::F16), f64::INFINITY),
        ("weights in bf16", TextToImage::builder().dtype(DTypeChoice::BF16).products(Products::Full), 50.0),
        ("products in bf16", TextToImage::builder().products(Products::Bf16), 50.0),
    ];
    for (name, builder, least) in kinds {
        for (i, (exact, rounded)) in exact.iter().zip(pictures(builder)?).enumerate() {
            let psnr = psnr(exact, &rounded);
            println!("{name}, picture {i}: {psnr:.1} dB");
            assert!(psnr >= least, "{name}, picture {i}: {psnr:.1} dB");
        }
    }
    Ok(())
}
