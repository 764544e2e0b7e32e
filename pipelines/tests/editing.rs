//! Image to image and inpainting through the program, with real files of every kind.

mod tweedie;

use ::tweedie::images::{Mask, Photo, Samples};
use ::tweedie::schedulers::SCHEDULERS;
use ::tweedie_pipelines::{InpaintRequest, LatentDiffusion, TextToImageRequest};
use image::{DynamicImage, ExtendedColorType, ImageEncoder};
use std::path::Path;
use tweedie::{TestResult, Tweedie, check_same_picture, golden, pixels};

/// A stream of numbers that look random (Knuth's multiplier).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next(256) as u8).collect()
    }
}

/// A picture with structure: gradients and a disc, a little noise.
fn scene(width: u32, height: u32, seed: u64) -> image::RgbImage {
    let mut numbers = Numbers(seed);
    image::RgbImage::from_fn(width, height, |x, y| {
        let inside = (x as f64 - f64::from(width) / 2.0).hypot(y as f64 - f64::from(height) / 2.0)
            < f64::from(width.min(height)) / 3.0;
        let noise = numbers.next(9) as u32;
        let sky = [60 + noise, 120 + 100 * y / height, 200 + noise];
        image::Rgb((if inside { [230, 90 + noise, 40] } else { sky }).map(|v| v as u8))
    })
}

/// White in a rectangle.
fn rectangle(width: u32, height: u32, left: u32, top: u32, right: u32, bottom: u32) -> image::GrayImage {
    let inside = |x, y| (left..right).contains(&x) && (top..bottom).contains(&y);
    image::GrayImage::from_fn(width, height, |x, y| image::Luma([if inside(x, y) { 255 } else { 0 }]))
}

/// A folder with `photo.png` and `mask.png`, 64x64.
fn folder_with_files() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    scene(64, 64, 1).save(tweedie.path("photo.png"))?;
    rectangle(64, 64, 16, 16, 40, 48).save(tweedie.path("mask.png"))?;
    Ok(tweedie)
}

const INPAINT: [&str; 12] = [
    "inpaint",
    "--prompt",
    "a cat",
    "--image",
    "photo.png",
    "--mask",
    "mask.png",
    "--steps",
    "2",
    "--output",
    "out.png",
    "--scheduler=ddim",
];

fn inpaint<'a>(more: &[&'a str]) -> Vec<&'a str> {
    INPAINT.iter().copied().chain(more.iter().copied()).collect()
}

/// The largest difference of any sample where the mask is black, and how many differ where it is white.
fn changes(before: &Photo, after: &Photo, mask: &Mask) -> TestResult<(u32, usize)> {
    assert_eq!((before.width(), before.height()), (after.width(), after.height()), "the size");
    assert_eq!((before.color(), before.bit_depth()), (after.color(), after.bit_depth()), "colour type and depth");
    let values = |photo: &Photo| -> Vec<u32> {
        match photo.samples() {
            Samples::Eight(samples) => samples.iter().map(|&v| v.into()).collect(),
            Samples::Sixteen(samples) => samples.iter().map(|&v| v.into()).collect(),
        }
    };
    let channels = before.color().channels();
    let (before, after) = (values(before), values(after));
    let (mut outside, mut inside) = (0, 0);
    for (i, &mask) in mask.values().iter().enumerate() {
        let pixel = i * channels..(i + 1) * channels;
        if mask == 0 {
            outside = pixel.map(|i| before[i].abs_diff(after[i])).max().unwrap_or(0).max(outside);
        } else if before[pixel.clone()] != after[pixel] {
            inside += 1;
        }
    }
    Ok((outside, inside))
}

/// Nothing but the masked part has changed, and that has.
fn check_guarantee(tweedie: &Tweedie, photo: &str, mask: &Mask, output: &str) -> TestResult {
    let (before, after) = (Photo::read(&tweedie.path(photo))?, Photo::read(&tweedie.path(output))?);
    let (outside, inside) = changes(&before, &after, mask)?;
    assert_eq!(outside, 0, "{photo}: the largest change outside the mask");
    assert!(inside > 0, "{photo}: nothing was painted");
    Ok(())
}

#[test]
fn unmasked_pixels_keep_every_bit_on_every_solver_and_both_kinds_of_unet() -> TestResult {
    let file = tempfile::NamedTempFile::with_suffix(".png")?;
    scene(64, 64, 3).save(file.path())?;
    let photo = Photo::read(file.path())?;
    let mask = Mask::new(64, 64, rectangle(64, 64, 20, 9, 51, 40).into_raw())?;
    let text = TextToImageRequest { prompt: "a cat".into(), ..TextToImageRequest::default() };
    for model in ["sd15", "inpaint9"] {
        let loaded = LatentDiffusion::builder().model_folder(golden().join("models").join(model)).build()?;
        for entry in SCHEDULERS {
            let mut request = InpaintRequest::of(photo.clone(), Some(mask.clone()), text.clone());
            request.text.scheduler = Some(entry.name.into());
            request.text.steps = Some(3);
            let pictures = loaded.generate(&request).map_err(|e| format!("{model}, {}: {e}", entry.name))?;
            let (outside, inside) = changes(&photo, &pictures.pictures[0], &mask)?;
            assert!(outside == 0 && inside > 0, "{model}, {}: {outside} {inside}", entry.name);
        }
    }
    Ok(())
}

/// One of the kinds of files that people have.
fn save_as(kind: usize, picture: &image::RgbImage, path: &Path, numbers: &mut Numbers) -> TestResult {
    let (width, height) = picture.dimensions();
    let count = (width * height) as usize;
    let rgb = DynamicImage::from(picture.clone());
    let mut with_alpha = rgb.to_rgba8();
    let alpha = numbers.bytes(count);
    with_alpha.pixels_mut().zip(&alpha).for_each(|(pixel, &alpha)| pixel[3] = alpha);
    let image = match kind {
        0 => rgb,
        1 => DynamicImage::from(rgb.to_luma8()),
        2 => DynamicImage::from(with_alpha),
        3 => DynamicImage::from(DynamicImage::from(with_alpha).to_luma_alpha8()),
        4 => {
            let mut deep = rgb.to_rgb16();
            deep.iter_mut().for_each(|v| *v = v.wrapping_add(numbers.next(256) as u16));
            DynamicImage::from(deep)
        }
        5 => DynamicImage::from(rgb.to_luma16()),
        6 => DynamicImage::from(DynamicImage::from(with_alpha).to_rgba16()),
        7 => {
            let file = std::io::BufWriter::new(std::fs::File::create(path)?);
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(file, 85);
            return Ok(encoder.write_image(picture, width, height, ExtendedColorType::Rgb8)?);
        }
        8 => {
            let file = std::io::BufWriter::new(std::fs::File::create(path)?);
            let encoder = image::codecs::webp::WebPEncoder::new_lossless(file);
            return Ok(encoder.write_image(&with_alpha, width, height, ExtendedColorType::Rgba8)?);
        }
        _ => DynamicImage::from(rgb.to_rgba8()),
    };
    Ok(image.save_with_format(path, image::ImageFormat::Png)?)
}

#[test]
fn twenty_random_masks_sizes_and_formats_change_nothing_outside() -> TestResult {
    let mut numbers = Numbers(7);
    for i in 0..20 {
        let tweedie = Tweedie::new()?;
        let (width, height) = (20 + numbers.next(120) as u32, 20 + numbers.next(120) as u32);
        save_as(i % 10, &scene(width, height, i as u64), &tweedie.path("photo.png"), &mut numbers)?;
        // A disc, sometimes soft, anywhere.
        let (x, y) = (numbers.next(width as usize) as f64, numbers.next(height as usize) as f64);
        let radius = 8.0 + numbers.next(20) as f64;
        let soft = if i % 3 == 0 { 5.0 } else { 0.01 };
        let mask = image::GrayImage::from_fn(width, height, |px, py| {
            let distance = (f64::from(px) - x).hypot(f64::from(py) - y);
            image::Luma([(255.0 * ((radius - distance) / soft).clamp(0.0, 1.0)) as u8])
        });
        mask.save(tweedie.path("mask.png"))?;
        let more = [["--seed", "3"], ["--blend", "4"], ["--strength", "0.6"], ["--crop-to-mask", "6"]][i % 4];
        tweedie.run(&inpaint(&more))?.success()?;
        let mask = Mask::new(width as usize, height as usize, mask.into_raw())?;
        check_guarantee(&tweedie, "photo.png", &mask, "out.png").map_err(|e| format!("case {i}: {e}"))?;
    }
    Ok(())
}

#[test]
fn masks_come_as_grey_jpeg_webp_or_alpha() -> TestResult {
    let tweedie = folder_with_files()?;
    let mask = rectangle(64, 64, 16, 16, 40, 48);
    let expected = {
        tweedie.run(&inpaint(&[]))?.success()?;
        pixels(&tweedie.path("out.png"))?
    };
    let rgb = DynamicImage::from(mask.clone()).to_rgb8();
    let file = std::io::BufWriter::new(std::fs::File::create(tweedie.path("mask.jpg"))?);
    image::codecs::jpeg::JpegEncoder::new_with_quality(file, 100).write_image(&rgb, 64, 64, ExtendedColorType::Rgb8)?;
    let file = std::io::BufWriter::new(std::fs::File::create(tweedie.path("mask.webp"))?);
    image::codecs::webp::WebPEncoder::new_lossless(file).write_image(&rgb, 64, 64, ExtendedColorType::Rgb8)?;
    let alpha = image::RgbaImage::from_fn(64, 64, |x, y| image::Rgba([9, 9, 9, mask.get_pixel(x, y)[0]]));
    alpha.save(tweedie.path("alpha.png"))?;
    let mut black_and_white = DynamicImage::from(mask);
    black_and_white.invert();
    black_and_white.save(tweedie.path("inverted.png"))?;
    for (name, more) in
        [("mask.jpg", None), ("mask.webp", None), ("alpha.png", None), ("inverted.png", Some("--invert-mask"))]
    {
        let mut arguments = inpaint(&["--force"]);
        arguments[6] = name;
        arguments.extend(more);
        tweedie.run(&arguments)?.success()?;
        assert_eq!(pixels(&tweedie.path("out.png"))?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn the_result_has_the_size_of_the_input_or_the_one_that_was_asked_for() -> TestResult {
    let tweedie = Tweedie::new()?;
    scene(131, 87, 5).save(tweedie.path("photo.png"))?;
    rectangle(131, 87, 30, 20, 90, 60).save(tweedie.path("mask.png"))?;
    tweedie.run(&inpaint(&[]))?.success()?;
    assert_eq!(image::image_dimensions(tweedie.path("out.png"))?, (131, 87));
    tweedie.run(&inpaint(&["--force", "--width", "72", "--height", "48"]))?.success()?;
    assert_eq!(image::image_dimensions(tweedie.path("out.png"))?, (72, 48));
    // One side is enough: the other follows.
    tweedie.run(&inpaint(&["--force", "--width", "72"]))?.success()?;
    assert_eq!(image::image_dimensions(tweedie.path("out.png"))?, (72, 48));
    let img2img =
        ["img2img", "--quiet", "--prompt", "a cat", "--image", "photo.png", "--steps", "2", "--output", "other.png"];
    tweedie.run(&img2img)?.success()?;
    assert_eq!(image::image_dimensions(tweedie.path("other.png"))?, (131, 87));
    Ok(())
}

#[test]
fn outpainting_extends_the_canvas_and_keeps_the_picture() -> TestResult {
    let tweedie = folder_with_files()?;
    let arguments = [
        "inpaint",
        "--quiet",
        "--prompt",
        "a cat",
        "--image",
        "photo.png",
        "--outpaint",
        "left=16,bottom=10",
        "--steps",
        "2",
        "--output",
        "out.png",
    ];
    tweedie.run(&arguments)?.success()?;
    let (before, after) = (image::open(tweedie.path("photo.png"))?, image::open(tweedie.path("out.png"))?);
    assert_eq!((after.width(), after.height()), (80, 74));
    assert_eq!(after.crop_imm(16, 0, 64, 64).to_rgb8(), before.to_rgb8());
    // With a mask as well, both are painted.
    let mut both = arguments.to_vec();
    both.extend(["--mask", "mask.png", "--force"]);
    tweedie.run(&both)?.success()?;
    let after = image::open(tweedie.path("out.png"))?.crop_imm(16, 0, 64, 64).to_rgb8();
    let differs = |x, y| after.get_pixel(x, y) != before.to_rgb8().get_pixel(x, y);
    assert!(differs(30, 30) && !differs(5, 5) && !differs(60, 60));
    Ok(())
}

#[test]
fn empty_full_and_stretched_masks_have_defined_results() -> TestResult {
    let tweedie = folder_with_files()?;
    image::GrayImage::new(64, 64).save(tweedie.path("mask.png"))?;
    let outcome = tweedie.run(&inpaint(&[]))?.success()?;
    assert!(outcome.warnings().concat().contains("the mask is empty"), "{}", outcome.stderr);
    assert_eq!(pixels(&tweedie.path("out.png"))?, pixels(&tweedie.path("photo.png"))?);

    // All of it: from pure noise, as a text alone would make it but for the draws.
    image::GrayImage::from_pixel(64, 64, image::Luma([255])).save(tweedie.path("mask.png"))?;
    let of_its_size = ["--force", "--width", "64", "--height", "64"];
    tweedie.run(&inpaint(&of_its_size))?.success()?;
    let (_, _, full) = pixels(&tweedie.path("out.png"))?;
    tweedie.run(&inpaint(&[&of_its_size[..], &["--no-composite"]].concat()))?.success()?;
    assert_eq!(pixels(&tweedie.path("out.png"))?.2, full, "with a full mask the decoder's picture is the result");

    rectangle(30, 10, 10, 2, 20, 8).save(tweedie.path("mask.png"))?;
    let outcome = tweedie.run(&inpaint(&["--force"]))?.success()?;
    assert!(outcome.stderr.contains("the mask is 30x10 and the picture 64x64"), "{}", outcome.stderr);

    // A line of one pixel vanishes between latents, unless it is kept.
    rectangle(64, 64, 0, 33, 64, 34).save(tweedie.path("mask.png"))?;
    let outcome = tweedie.run(&inpaint(&["--force"]))?.success()?;
    assert!(outcome.stderr.contains("vanishes") && outcome.stderr.contains("--mask-resize max"), "{}", outcome.stderr);
    let outcome = tweedie.run(&inpaint(&["--force", "--mask-resize", "max"]))?.success()?;
    assert!(outcome.warnings().is_empty(), "{}", outcome.stderr);
    Ok(())
}

/// Each way of filling gives another picture under the mask and the same around it, and none has a part in one from noise alone.
#[test]
fn drawing_starts_from_what_fills_the_mask() -> TestResult {
    let tweedie = folder_with_files()?;
    rectangle(64, 64, 16, 16, 48, 48).save(tweedie.path("mask.png"))?;
    let given = pixels(&tweedie.path("photo.png"))?.2;
    let mut made: Vec<Vec<u8>> = Vec::new();
    for fill in ["original", "surroundings", "noise", "nothing"] {
        tweedie.run(&inpaint(&["--force", "--strength", "0.8", "--mask-fill", fill]))?.success()?;
        let (_, _, painted) = pixels(&tweedie.path("out.png"))?;
        let masked = |i: usize| (16..48).contains(&(i / 3 % 64)) && (16..48).contains(&(i / 3 / 64));
        assert!((0..painted.len()).all(|i| masked(i) || painted[i] == given[i]), "{fill}");
        assert!(made.iter().all(|other| *other != painted), "{fill}");
        made.push(painted);
    }
    let outcome = tweedie.run(&inpaint(&["--force", "--mask-fill", "noise"]))?.success()?;
    assert!(outcome.stderr.contains("--mask-fill has no effect at a --strength of 1"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn strength_zero_gives_the_input_back() -> TestResult {
    let tweedie = folder_with_files()?;
    let img2img =
        ["img2img", "--quiet", "--prompt", "a cat", "--image", "photo.png", "--strength", "0", "--output", "o.png"];
    tweedie.run(&img2img)?.success()?;
    assert_eq!(pixels(&tweedie.path("o.png"))?, pixels(&tweedie.path("photo.png"))?);
    tweedie.run(&inpaint(&["--strength", "0"]))?.success()?;
    assert_eq!(pixels(&tweedie.path("out.png"))?, pixels(&tweedie.path("photo.png"))?);
    Ok(())
}

#[test]
fn feathering_and_resampling_change_only_what_is_inside() -> TestResult {
    let tweedie = folder_with_files()?;
    let mask = Mask::read(&tweedie.path("mask.png"))?;
    let mut results = Vec::new();
    for more in
        [&[][..], &["--blend", "6"], &["--resample", "3"], &["--resample", "2", "--jump-length", "2"], &["--seed", "1"]]
    {
        let mut arguments = inpaint(&["--force"]);
        arguments[8] = "5";
        arguments.extend(more);
        tweedie.run(&arguments)?.success()?;
        check_guarantee(&tweedie, "photo.png", &mask, "out.png")?;
        results.push(pixels(&tweedie.path("out.png"))?.2);
    }
    for i in 0..results.len() {
        assert!(results[i + 1..].iter().all(|other| *other != results[i]), "result {i} is repeated");
    }
    Ok(())
}

#[test]
fn steps_are_saved_as_previews_and_an_animation() -> TestResult {
    let tweedie = folder_with_files()?;
    let mut arguments = inpaint(&["--save-steps", "steps", "--width", "64", "--height", "64"]);
    arguments[8] = "4";
    tweedie.run(&arguments)?.success()?;
    for name in ["step-001.png", "step-004.png", "steps.png"] {
        assert_eq!(image::image_dimensions(tweedie.path("steps").join(name))?, (64, 64), "{name}");
    }
    // The last preview is near the picture that the decoder made.
    arguments[10] = "raw.png";
    arguments.retain(|a| !a.contains("steps") || *a == "--steps");
    arguments.push("--no-composite");
    tweedie.run(&arguments)?.success()?;
    let (_, _, raw) = pixels(&tweedie.path("raw.png"))?;
    let (_, _, preview) = pixels(&tweedie.path("steps/step-004.png"))?;
    let mean = raw.iter().zip(&preview).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / raw.len() as f64;
    assert!(mean < 40.0, "the preview differs by {mean} in the mean");
    // The folder is taken now.
    tweedie.run(&inpaint(&["--force", "--save-steps", "photo.png"]))?.fails(1, &["photo.png", "cannot be a folder"])?;
    let mut again = inpaint(&["--save-steps", "steps"]);
    again[10] = "again.png";
    tweedie.run(&again)?.fails(1, &["steps", "not empty", "--force"])
}

/// The last step of Euler's method ends at what the network predicts, so its preview is the picture that the same
/// autoencoder makes.
#[test]
fn previews_can_have_an_autoencoder_of_their_own() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = golden().join("models/sd15").to_string_lossy().into_owned();
    let taesd = golden().join("models/taesd").to_string_lossy().into_owned();
    let run = |more: &[&str]| {
        let common = [
            "txt2img",
            "--quiet",
            "--model",
            &model,
            "--prompt=a fox",
            "--steps=3",
            "--scheduler=euler",
            "--num-images=2",
        ];
        tweedie.run(&[&common[..], more].concat())
    };
    run(&["--batch-size=2", "--output=own.png", "--save-steps=steps", "--preview-vae", &taesd])?.success()?;
    run(&["--output=tiny.png", "--vae", &taesd])?.success()?;
    for i in 0..2 {
        let preview = |step| tweedie.path(&format!("steps/{i}-step-00{step}.png"));
        check_same_picture(&preview(3), &tweedie.path(&format!("tiny-{i}.png")))?;
        let [first, second, last] = [pixels(&preview(1))?, pixels(&preview(2))?, pixels(&preview(3))?];
        assert!(first != second && second != last && first != last, "picture {i}");
        assert!(tweedie.path(&format!("steps/{i}-steps.png")).is_file());
    }
    // Previews change nothing.
    run(&["--output=again.png"])?.success()?;
    assert!(pixels(&tweedie.path("again-1.png"))? == pixels(&tweedie.path("own-1.png"))?);

    let other = golden().join("models/xl-small").to_string_lossy().into_owned();
    let parts = ["latents of the autoencoder for previews", "1/4 of the size", "1/8"];
    run(&["--output=no.png", "--save-steps=no", "--preview-vae", &other])?.fails(1, &parts)?;
    assert!(!tweedie.path("no").exists());
    run(&["--output=no.png", "--preview-vae", &taesd])?.fails(2, &["--save-steps"])
}

#[test]
fn inputs_are_never_replaced() -> TestResult {
    let tweedie = folder_with_files()?;
    let before = std::fs::read(tweedie.path("photo.png"))?;
    for name in ["photo.png", "mask.png", "./photo.png"] {
        let mut arguments = inpaint(&["--force"]);
        arguments[10] = name;
        tweedie.run(&arguments)?.fails(1, &["is an input too", "choose another"])?;
    }
    assert_eq!(std::fs::read(tweedie.path("photo.png"))?, before);
    Ok(())
}

/// A run with a bad file must fail with one message and write nothing.
fn refused(photo: &[u8], mask: &[u8], parts: &[&str]) -> TestResult {
    let tweedie = Tweedie::new()?;
    std::fs::write(tweedie.path("photo.png"), photo)?;
    std::fs::write(tweedie.path("mask.png"), mask)?;
    tweedie.run(&inpaint(&[]))?.fails(1, parts)?;
    assert_eq!(tweedie.files()?, ["mask.png", "photo.png"]);
    Ok(())
}

fn encoded(image: &DynamicImage) -> TestResult<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

#[test]
fn bad_files_get_one_message_and_nothing_is_written() -> TestResult {
    let good = encoded(&scene(64, 64, 1).into())?;
    let mask = encoded(&rectangle(64, 64, 1, 1, 20, 20).into())?;
    refused(b"", &mask, &["photo.png", "empty"])?;
    refused(&good, b"", &["mask.png", "empty"])?;
    refused(b"This is not a picture at all.", &mask, &["photo.png", "PNG, JPEG"])?;
    refused(&good, b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", &["mask.png", "PNG, JPEG"])?;
    refused(&good[..good.len() / 2], &mask, &["photo.png"])?;
    refused(&good, &mask[..mask.len() - 20], &["mask.png"])?;
    let long = encoded(&image::GrayImage::new(100_000, 1).into())?;
    refused(&long, &mask, &["100000x1"])?;
    refused(&good, &long, &["100000x1"])?;

    let tweedie = folder_with_files()?;
    std::fs::remove_file(tweedie.path("mask.png"))?;
    tweedie.run(&inpaint(&[]))?.fails(1, &["mask.png"])?;
    std::fs::create_dir(tweedie.path("mask.png"))?;
    tweedie.run(&inpaint(&[]))?.fails(1, &["mask.png"])?;
    assert_eq!(tweedie.files()?, ["mask.png", "photo.png"]);
    Ok(())
}

/// The header alone says that a picture is too large; its pixels are never made.
#[test]
fn huge_pictures_are_refused_before_memory_is_spent() -> TestResult {
    let mut huge = encoded(&scene(8, 8, 1).into())?;
    // Width and height of the header chunk, and its checksum, for 60000x60000.
    let mut header = b"IHDR".to_vec();
    header.extend([0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    header.extend(&huge[24..29]);
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    huge.splice(12..33, header.iter().copied().chain(crc.sum().to_be_bytes()));
    refused(&huge, &encoded(&rectangle(64, 64, 1, 1, 20, 20).into())?, &["60000x60000"])
}

#[test]
fn a_models_folder_can_say_how_far_to_go() -> TestResult {
    let tweedie = folder_with_files()?;
    tweedie::copy_folder(&golden().join("models/sd15"), &tweedie.path("model"))?;
    std::fs::write(tweedie.path("model/defaults.json"), r#"{"strength": 0.5, "steps": 2}"#)?;
    let base = ["img2img", "--model", "model", "--prompt", "a cat", "--image", "photo.png", "--json", "--quiet"];
    let strength = |more: &[&str]| -> TestResult<Option<f64>> {
        let json = tweedie.run(&[&base, more].concat())?.success()?.json()?;
        Ok(json["settings"]["strength"].as_f64())
    };
    assert_eq!(strength(&["--output", "a.png"])?, Some(0.5));
    assert_eq!(strength(&["--output", "b.png", "--strength", "1"])?, Some(1.0));
    Ok(())
}

#[test]
fn impossible_requests_say_what_is_possible() -> TestResult {
    let tweedie = folder_with_files()?;
    tweedie.run(&inpaint(&["--strength", "1.5"]))?.fails(2, &["strength is 1.5", "0", "1"])?;
    tweedie.run(&inpaint(&["--strength", "0.1"]))?.fails(2, &["strength is 0.1", "0.50 or more"])?;
    tweedie.run(&inpaint(&["--resample", "0"]))?.fails(2, &["resample is 0"])?;
    tweedie.run(&inpaint(&["--width", "66"]))?.fails(2, &["width is 66", "nearest is 64"])?;
    tweedie.run(&inpaint(&["--outpaint", "left=99999"]))?.fails(2, &["100063x64"])?;
    for usage in ["left", "left=x", "up=3", "left=0"] {
        assert_eq!(tweedie.run(&inpaint(&["--outpaint", usage]))?.status, 2, "{usage}");
    }
    let no_mask = ["inpaint", "--prompt", "a cat", "--image", "photo.png"];
    assert_eq!(tweedie.run(&no_mask)?.status, 2);
    let model = golden().join("models/inpaint9");
    let model = model.to_string_lossy();
    let wrong = ["img2img", "--model", &model, "--prompt", "a cat", "--image", "photo.png"];
    tweedie.run(&wrong)?.fails(2, &["in_channels of the unet is 9", "tweedie inpaint"])?;
    assert_eq!(tweedie.files()?, ["mask.png", "photo.png"]);
    Ok(())
}

#[test]
fn a_picture_says_what_it_was_made_from() -> TestResult {
    let tweedie = folder_with_files()?;
    tweedie.run(&inpaint(&["--strength", "0.75", "--mask-grow", "2"]))?.success()?;
    let path = tweedie.path("out.png");
    let chunks = ::tweedie::images::read_png_text(&std::fs::read(&path)?, &path)?;
    let text = |keyword: &str| {
        chunks.iter().find(|chunk| chunk.keyword == keyword).map(|chunk| chunk.text.clone()).unwrap_or_default()
    };
    assert!(text("parameters").contains("Denoising strength: 0.75"), "{}", text("parameters"));
    let json: serde_json::Value = serde_json::from_str(&text("tweedie"))?;
    assert_eq!((json["kind"].as_str(), json["strength"].as_f64()), (Some("inpaint"), Some(0.75)));
    assert_eq!((json["mask"]["name"].as_str(), json["inpaint"]["mask_grow"].as_u64()), (Some("mask.png"), Some(2)));
    let sha256 = ::tweedie::files::sha256(std::fs::File::open(tweedie.path("photo.png"))?)?;
    assert_eq!(json["image"]["sha256"].as_str(), Some(sha256.as_str()));
    Ok(())
}
