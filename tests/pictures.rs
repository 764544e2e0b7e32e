//! Pictures and masks: against Pillow and diffusers, by brute force, and by what must hold for every picture.

mod png_files;

use candle_core::Device;
use png_files::png_file;
use std::fs;
use std::path::{Path, PathBuf};
use tweedie::images::{
    ColorType, CropBox, Margins, Mask, MaskResize, Photo, Picture, Samples, TextChunk, encode_animation, read_png_text,
};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const COLORS: [ColorType; 4] = [ColorType::Grey, ColorType::GreyAlpha, ColorType::Rgb, ColorType::Rgba];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures").join(name)
}

/// The files of a golden folder, sorted; `parts` are a name's parts between dots.
fn files(name: &str) -> Result<Vec<(PathBuf, Vec<String>)>, std::io::Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder(name))? {
        let path = entry?.path();
        let parts = path.file_name().unwrap_or_default().to_string_lossy().split('.').map(String::from).collect();
        files.push((path, parts));
    }
    files.sort();
    Ok(files)
}

/// "17x41" as (17, 41).
fn size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

fn samples(photo: &Photo) -> Vec<u32> {
    match photo.samples() {
        Samples::Eight(samples) => samples.iter().map(|&sample| u32::from(sample)).collect(),
        Samples::Sixteen(samples) => samples.iter().map(|&sample| u32::from(sample)).collect(),
    }
}

/// The largest difference of two photos that have one size, kind and depth.
fn largest_difference(a: &Photo, b: &Photo) -> u32 {
    let kind = |photo: &Photo| (photo.width(), photo.height(), photo.color(), photo.bit_depth());
    assert_eq!(kind(a), kind(b));
    samples(a).iter().zip(samples(b)).map(|(&a, b)| a.abs_diff(b)).max().unwrap_or(0)
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    fn photo(&mut self, width: usize, height: usize, color: ColorType, sixteen: bool) -> tweedie::Result<Photo> {
        let count = width * height * color.channels();
        let samples = match sixteen {
            true => Samples::Sixteen((0..count).map(|_| self.next() as u16).collect()),
            false => Samples::Eight(self.bytes(count)),
        };
        Photo::new(width, height, color, samples)
    }

    /// Mostly black: a few rectangles, some of them of other values than 255, and single pixels.
    fn mask(&mut self, width: usize, height: usize) -> tweedie::Result<Mask> {
        let mut values = vec![0; width * height];
        for _ in 0..1 + self.below(4) {
            let (left, top) = (self.below(width), self.below(height));
            let (right, bottom) = (left + 1 + self.below(width - left), top + 1 + self.below(height - top));
            let value = if self.below(3) == 0 { self.next() as u8 } else { 255 };
            for y in top..bottom.min(top + height / 2 + 1) {
                values[y * width + left..y * width + right.min(left + width / 2 + 1)].fill(value);
            }
        }
        let i = self.below(values.len());
        values[i] = 255;
        Mask::new(width, height, values)
    }
}

#[test]
fn golden_files_of_every_kind_are_read_upright() -> TestResult {
    let mut read = 0;
    for (path, parts) in files("files")? {
        if parts[1] == "expected" {
            continue;
        }
        let photo = Photo::read(&path)?;
        let expected = Photo::read(&folder("files").join(format!("{}.expected.png", parts[0])))?;
        // JPEG lets a decoder round its transforms, worth 3 levels, and enlarge colour of half the size, worth more at
        // the scene's hard edges. All else is exact.
        let tolerance = match parts[0].as_str() {
            "progressive" => 12,
            _ if parts[1] == "jpg" => 3,
            _ => 0,
        };
        let difference = largest_difference(&photo, &expected);
        assert!(difference <= tolerance, "{}: {difference}", path.display());
        read += 1;
    }
    assert!(read >= 20, "{read} files");
    Ok(())
}

#[test]
fn golden_resizing_gives_pillows_bytes() -> TestResult {
    let mut cases = 0;
    for (path, parts) in files("resize")? {
        let Some((width, height)) = size(&parts[1]) else { continue };
        let source = Photo::read(&folder("resize").join(format!("{}.png", parts[0])))?;
        let expected = Photo::read(&path)?;
        assert!(source.resized(width, height)? == expected, "{}", path.display());
        if source.color() == ColorType::Rgb {
            assert!(source.to_picture().resized(width, height)? == expected.to_picture(), "{}", path.display());
        }
        if source.color() == ColorType::Grey && source.bit_depth() == 8 {
            assert_eq!(Mask::from_photo(&source).resized(width, height)?, Mask::from_photo(&expected));
        }
        cases += 1;
    }
    assert!(cases >= 60, "{cases} cases");
    Ok(())
}

/// The filter as one sum over both axes, of colours weighted by alpha.
#[test]
fn sixteen_bits_with_alpha_are_resized_as_the_filter_says() -> TestResult {
    let kernel = |x: f64| match x.abs() {
        0.0 => 1.0,
        x if x < 3.0 => {
            let x = std::f64::consts::PI * x;
            3.0 * x.sin() * (x / 3.0).sin() / (x * x)
        }
        _ => 0.0,
    };
    let weights = |i: usize, from: usize, to: usize| -> Vec<f64> {
        let scale = from as f64 / to as f64;
        let centre = (i as f64 + 0.5) * scale;
        let weights: Vec<f64> = (0..from).map(|j| kernel((j as f64 + 0.5 - centre) / scale.max(1.0))).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    };
    let (from, mut random) = ((19, 14), Random(5));
    let photo = random.photo(from.0, from.1, ColorType::Rgba, true)?;
    let source: Vec<f64> = samples(&photo).into_iter().map(f64::from).collect();
    for to in [(7, 9), (30, 25), (19, 5), (40, 14)] {
        let resized = samples(&photo.resized(to.0, to.1)?);
        for (i, found) in resized.chunks_exact(4).enumerate() {
            let (across, down) = (weights(i % to.0, from.0, to.0), weights(i / to.0, from.1, to.1));
            let mut sums = [0.0; 4];
            for (j, pixel) in source.chunks_exact(4).enumerate() {
                let weight = across[j % from.0] * down[j / from.0];
                for c in 0..4 {
                    sums[c] += weight * pixel[c] * if c < 3 { pixel[3] / 65535.0 } else { 1.0 };
                }
            }
            let alpha = sums[3].clamp(0.0, 65535.0);
            assert!((f64::from(found[3]) - alpha).abs() < 1.0);
            for c in (0..3).filter(|_| alpha > 100.0) {
                let color = (sums[c] * 65535.0 / alpha).clamp(0.0, 65535.0);
                // Rounding to an integer, and single precision between the passes, enlarged by the division.
                let tolerance = 0.51 + 0.02 * 65535.0 / alpha;
                assert!((f64::from(found[c]) - color).abs() < tolerance, "{} {color} {alpha}", found[c]);
            }
        }
    }
    Ok(())
}

#[test]
fn golden_luma_and_levels() -> TestResult {
    let source = Photo::read(&folder("resize/rgb.png"))?;
    assert_eq!(Mask::from_photo(&source), Mask::read(&folder("luma.png"))?);

    let levels: Vec<f32> = serde_json::from_slice(&fs::read(folder("levels.json"))?)?;
    let rgb: Vec<u8> = (0..=255).flat_map(|level| [level, 255 - level, 7]).collect();
    let tensor = Picture::new(256, 1, rgb)?.to_tensor(&Device::Cpu)?;
    assert_eq!(tensor.dims(), [1, 3, 1, 256]);
    let found = tensor.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(found[..256], levels);
    assert!((0..256).all(|i| found[256 + i] == levels[255 - i] && found[512 + i] == levels[7]));
    Ok(())
}

#[test]
fn golden_masks_are_fitted_blurred_and_reduced_as_by_diffusers() -> TestResult {
    let mask = Mask::read(&folder("mask/mask.png"))?;
    let mut cases = [0; 3];
    for (path, parts) in files("mask")? {
        let name = path.display();
        match (parts[0].as_str(), size(&parts[1])) {
            ("fitted", Some((width, height))) => {
                assert!(mask.fitted(width, height, MaskResize::Lanczos)? == Mask::read(&path)?, "{name}");
                cases[0] += 1;
            }
            ("latent", Some((width, height))) => {
                let fitted = mask.fitted(width, height, MaskResize::Lanczos)?;
                let (width, height) = size(&parts[2]).ok_or("a latent's size")?;
                assert!(fitted.to_latent(width, height, MaskResize::Lanczos)? == Mask::read(&path)?, "{name}");
                cases[1] += 1;
            }
            ("blur", _) => {
                let sigma = parts[1..parts.len() - 1].join(".").parse()?;
                assert!(mask.blurred(sigma) == Mask::read(&path)?, "{name}");
                cases[2] += 1;
            }
            _ => {}
        }
    }
    assert_eq!(cases, [3, 6, 7]);
    assert_eq!(mask.blurred(f32::NAN), mask);
    Ok(())
}

#[test]
fn a_mask_is_alpha_where_that_varies_and_grey_otherwise() -> TestResult {
    let mask = |color, samples| Ok::<_, tweedie::Error>(Mask::from_photo(&Photo::new(2, 1, color, samples)?));
    let eight = Samples::Eight;
    assert_eq!(mask(ColorType::Grey, eight(vec![3, 200]))?.values(), [3, 200]);
    assert_eq!(mask(ColorType::GreyAlpha, eight(vec![3, 9, 200, 9]))?.values(), [3, 200]);
    assert_eq!(mask(ColorType::GreyAlpha, eight(vec![3, 0, 200, 255]))?.values(), [0, 255]);
    assert_eq!(mask(ColorType::Rgba, eight(vec![255, 255, 255, 0, 0, 0, 0, 128]))?.values(), [0, 128]);
    assert_eq!(mask(ColorType::Rgba, eight(vec![255, 255, 255, 0, 255, 0, 0, 0]))?.values(), [255, 76]);
    assert_eq!(mask(ColorType::Grey, Samples::Sixteen(vec![128, 129]))?.values(), [0, 1]);
    assert_eq!(mask(ColorType::GreyAlpha, Samples::Sixteen(vec![7, 0, 7, 65535]))?.values(), [0, 255]);
    assert_eq!(mask(ColorType::Grey, eight(vec![127, 128]))?.binarised().values(), [0, 255]);
    assert_eq!(mask(ColorType::Grey, eight(vec![127, 0]))?.inverted().values(), [128, 255]);
    Ok(())
}

#[test]
fn growing_and_feathering_follow_euclidean_distance() -> TestResult {
    let mut random = Random(11);
    for _ in 0..12 {
        let (width, height, n) = (1 + random.below(25), 1 + random.below(25), random.below(7));
        let mask = random.mask(width, height)?;
        let distance = |i: usize, j: usize| {
            let (x, y) = ((i % width).abs_diff(j % width), (i / width).abs_diff(j / width));
            ((x * x + y * y) as f64).sqrt()
        };
        let nearest = |i: usize, holds: &dyn Fn(u8) -> bool| {
            let there = (0..width * height).filter(|&j| holds(mask.values()[j]));
            there.map(|j| distance(i, j)).fold(f64::INFINITY, f64::min)
        };
        let (grown, weights) = (mask.grown(n), mask.weights(n));
        assert_eq!(
            mask.grown(0),
            Mask::new(width, height, mask.values().iter().map(|&v| if v > 127 { 255 } else { v }).collect())?
        );
        for (i, &value) in mask.values().iter().enumerate() {
            let expected = if nearest(i, &|v| v >= 128) <= n as f64 { 255 } else { value };
            assert_eq!(grown.values()[i], expected, "{width}x{height}, {n}, {i}");
            let fade = (nearest(i, &|v| v == 0) / (n as f64 + 1.0)).min(1.0);
            let expected = f64::from(value) / 255.0 * fade;
            // Two roundings to single precision.
            assert!((f64::from(weights.values()[i]) - expected).abs() < 2e-7, "{width}x{height}, {n}, {i}");
            assert_eq!(weights.values()[i] == 0.0, value == 0);
        }
    }
    let full = Mask::new(9, 7, vec![255; 63])?;
    assert!(full.weights(5).values().iter().all(|&weight| weight == 1.0) && full.is_full());
    let empty = full.inverted();
    assert_eq!(empty.grown(usize::MAX), empty);
    assert!(empty.is_empty() && empty.bounding_box().is_none() && empty.covered_share() == 0.0);
    Ok(())
}

#[test]
fn the_largest_value_survives_every_reduction() -> TestResult {
    let mut random = Random(3);
    for _ in 0..20 {
        let (width, height) = (1 + random.below(40), 1 + random.below(40));
        let (to_width, to_height) = (1 + random.below(50), 1 + random.below(50));
        let mask = random.mask(width, height)?;
        let reduced = mask.resized_max(to_width, to_height)?;
        // Two pixels touch if their squares, in units of 1 / (from * to), overlap.
        let touch = |i: usize, to: usize, j: usize, from: usize| i * from < (j + 1) * to && j * to < (i + 1) * from;
        for (i, &found) in reduced.values().iter().enumerate() {
            let (x, y) = (i % to_width, i / to_width);
            let under = (0..width * height)
                .filter(|&j| touch(x, to_width, j % width, width) && touch(y, to_height, j / width, height));
            assert_eq!(Some(found), under.map(|j| mask.values()[j]).max());
        }
    }
    // A line of one pixel, off the grid of latents.
    let mut values = vec![0; 64 * 64];
    values[64 * 13..64 * 14].fill(255);
    let line = Mask::new(64, 64, values)?;
    assert!(line.to_latent(8, 8, MaskResize::Lanczos)?.is_empty());
    let latent = line.fitted(32, 32, MaskResize::Max)?.to_latent(8, 8, MaskResize::Max)?;
    assert_eq!(latent.bounding_box(), Some(CropBox { left: 0, top: 1, width: 8, height: 1 }));
    Ok(())
}

#[test]
fn outside_the_mask_no_bit_changes() -> TestResult {
    let mut random = Random(2024);
    for case in 0..40 {
        let (width, height) = (3 + random.below(60), 3 + random.below(60));
        let color = COLORS[case % 4];
        let photo = random.photo(width, height, color, case % 8 >= 4)?;
        let mask = random.mask(width, height)?;
        let place = match case % 3 {
            0 => CropBox::whole(width, height),
            _ => mask.bounding_box().ok_or("an empty mask")?.padded(random.below(5), width, height),
        };
        let painted = Picture::new(place.width, place.height, random.bytes(3 * place.width * place.height))?;
        let result = photo.paste(&painted, &mask.weights(random.below(6)), &place)?;
        assert_eq!((result.color(), result.bit_depth()), (color, photo.bit_depth()));

        let channels = color.channels();
        let (before, after) = (samples(&photo), samples(&result));
        let mut inside = 0;
        for (i, &value) in mask.values().iter().enumerate() {
            let pixel = channels * i..channels * (i + 1);
            let (x, y) = (i % width, i / width);
            let placed = (place.left..place.right()).contains(&x) && (place.top..place.bottom()).contains(&y);
            if value == 0 || !placed {
                assert_eq!(before[pixel.clone()], after[pixel], "case {case}, pixel {i}");
            } else {
                inside += usize::from(before[pixel.clone()] != after[pixel]);
            }
        }
        assert!(inside > 0, "case {case} painted nothing");
        // And once more through the file.
        let file = Photo::decode(&result.encode_png(&[])?, Path::new("result.png"))?;
        assert_eq!(file, result);
    }
    Ok(())
}

#[test]
fn inside_the_mask_paint_is_opaque_and_keeps_its_values() -> TestResult {
    let mut random = Random(8);
    let painted = Picture::new(5, 4, random.bytes(60))?;
    let full = Mask::new(5, 4, vec![255; 20])?;
    for (color, sixteen) in COLORS.into_iter().flat_map(|color| [(color, false), (color, true)]) {
        let result = random.photo(5, 4, color, sixteen)?.composite(&painted, &full.weights(0))?;
        if color.is_grey() {
            let luma = Mask::from_photo(&Photo::from(&painted));
            let grey: Vec<u8> = result.to_picture().rgb().chunks_exact(3).map(|rgb| rgb[0]).collect();
            assert_eq!(grey, luma.values());
        } else {
            assert_eq!(result.to_picture(), painted);
        }
        let largest = if sixteen { 65535 } else { 255 };
        let channels = color.channels();
        let opaque = samples(&result).iter().skip(channels - 1).step_by(channels).all(|&alpha| alpha == largest);
        assert!(opaque || !color.has_alpha());
        assert!(samples(&result).iter().all(|sample| !sixteen || sample % 257 == 0));
    }

    // Half of the weight on a transparent red: its colour does not show, and half of the opacity is the paint's.
    let photo = Photo::new(2, 1, ColorType::Rgba, Samples::Eight(vec![255, 0, 0, 0, 255, 0, 0, 255]))?;
    let half = Mask::new(2, 1, vec![51, 51])?.weights(0);
    let result = photo.composite(&Picture::new(2, 1, vec![0, 0, 200, 0, 0, 200])?, &half)?;
    assert_eq!(samples(&result), [0, 0, 200, 51, 204, 0, 40, 255]);

    let wrong = photo.composite(&painted, &half).err().map(|e| e.to_string());
    assert_eq!(wrong.as_deref(), Some("the painted picture's size is 5x4; it must be that of its place, 2x1"));
    let wrong = photo.composite(&photo.to_picture(), &full.weights(0)).err().map(|e| e.to_string());
    assert_eq!(wrong.as_deref(), Some("the blend weights' size is 5x4; it must be the photo's, 2x1"));
    Ok(())
}

#[test]
fn every_kind_and_depth_goes_through_a_png_file_with_its_texts_and_profile() -> TestResult {
    let mut random = Random(1);
    let chunks = [TextChunk::new("parameters", "a fox")];
    for (color, sixteen) in COLORS.into_iter().flat_map(|color| [(color, false), (color, true)]) {
        let photo = random.photo(7, 5, color, sixteen)?;
        let bytes = photo.encode_png(&chunks)?;
        assert_eq!(Photo::decode(&bytes, Path::new("x.png"))?, photo);
        assert_eq!(read_png_text(&bytes, Path::new("x.png"))?, chunks);
        let part = CropBox { left: 2, top: 1, width: 3, height: 4 };
        assert_eq!(photo.crop(&part)?.to_picture(), photo.to_picture().crop(&part)?);
    }
    let photo = Photo::read(&folder("files/profile.jpg"))?;
    let profile = photo.icc_profile().ok_or("no profile")?;
    assert!(profile.len() > 300);
    let again = Photo::decode(&photo.resized(20, 12)?.encode_png(&[])?, Path::new("x.png"))?;
    assert_eq!(again.icc_profile(), Some(profile));
    // Sixteen bits become the nearest of 256 levels.
    let deep = Photo::new(256, 256, ColorType::Grey, Samples::Sixteen((0..=65535).collect()))?.to_picture();
    let nearest = |sample: u32| (f64::from(sample) / 257.0).round() as u8;
    assert!((0..65536).all(|sample| deep.rgb()[3 * sample as usize + 1] == nearest(sample)));
    Ok(())
}

#[test]
fn a_canvas_mirrors_the_photo_and_masks_what_is_new() -> TestResult {
    let photo = Photo::new(3, 2, ColorType::Grey, Samples::Eight(vec![1, 2, 3, 4, 5, 6]))?;
    let (extended, mask) = photo.extended(&Margins { left: 4, bottom: 1, ..Margins::default() }, 0)?;
    let rows = [[3, 3, 2, 1, 1, 2, 3], [6, 6, 5, 4, 4, 5, 6], [6, 6, 5, 4, 4, 5, 6]];
    assert_eq!(samples(&extended), rows.concat());
    let keeps = [[255, 255, 255, 255, 0, 0, 0], [255, 255, 255, 255, 0, 0, 0], [255; 7]];
    assert_eq!(mask.values(), keeps.concat());
    let (_, overlapping) = photo.extended(&Margins { left: 1, ..Margins::default() }, 2)?;
    assert_eq!(overlapping.values(), [255, 255, 255, 0, 255, 255, 255, 0]);

    let mut random = Random(6);
    let photo = random.photo(20, 11, ColorType::Rgba, true)?;
    let margins = Margins { left: 3, top: 50, right: 0, bottom: 7 };
    let (extended, mask) = photo.extended(&margins, 0)?;
    assert_eq!(extended.crop(&margins.inner(20, 11))?, photo);
    assert!(mask.crop(&margins.inner(20, 11))?.is_empty());
    assert!((mask.covered_share() - (1.0 - 220.0 / (23.0 * 68.0))).abs() < 1e-12);

    let nothing = photo.extended(&Margins::default(), 0).err().map(|e| e.to_string());
    assert!(nothing.is_some_and(|e| e.contains("nothing")));
    let huge = photo.extended(&Margins { left: usize::MAX, ..margins }, 0).err().map(|e| e.to_string());
    assert!(huge.is_some_and(|e| e.contains("16384")));
    Ok(())
}

#[test]
fn an_animation_holds_every_frame() -> TestResult {
    let mut random = Random(7);
    let frames: Vec<Picture> = (0..4).map(|_| Picture::new(6, 5, random.bytes(90))).collect::<Result<_, _>>()?;
    let bytes = encode_animation(&frames, 120)?;
    let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info()?;
    assert_eq!(reader.info().animation_control().map(|control| (control.num_frames, control.num_plays)), Some((4, 0)));
    for frame in &frames {
        let mut pixels = vec![0; 90];
        reader.next_frame(&mut pixels)?;
        assert_eq!(pixels, frame.rgb());
        let delay = reader.info().frame_control().map(|control| (control.delay_num, control.delay_den));
        assert_eq!(delay, Some((120, 1000)));
    }
    assert_eq!(Photo::decode(&bytes, Path::new("x.png"))?.to_picture(), frames[0]);
    assert!(encode_animation(&[], 1).is_err());
    assert!(encode_animation(&[frames[0].clone(), Picture::new(5, 6, vec![0; 90])?], 1).is_err());
    Ok(())
}

/// A PNG file that states a size and holds no pixels.
fn header_alone(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 6, 0, 0, 0]].concat();
    png_file([(b"IHDR", &header[..]), (b"IDAT", &[])])
}

fn compressed(bytes: &[u8]) -> Result<Vec<u8>, std::io::Error> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

/// A palette has three bytes a colour, which not every decoder checks.
#[test]
fn a_palette_of_any_length_is_an_error_or_read() -> TestResult {
    // One pixel of the first colour.
    let header = [&1u32.to_be_bytes()[..], &1u32.to_be_bytes(), &[8, 3, 0, 0, 0]].concat();
    let pixels = compressed(&[0, 0])?;
    for length in 1..=770 {
        let palette: Vec<u8> = (0..length).map(|i| i as u8 + 7).collect();
        let file = png_file([(b"IHDR", &header[..]), (b"PLTE", &palette), (b"IDAT", &pixels), (b"IEND", &[])]);
        let read = Photo::decode(&file, Path::new("x.png"));
        let text = read_png_text(&file, Path::new("x.png"));
        match read {
            Ok(photo) => assert_eq!(photo.to_picture().rgb(), [7, 8, 9], "{length}"),
            Err(error) => assert!(error.to_string().contains("x.png is not a usable picture: it is "), "{error}"),
        }
        assert!(text.is_err() || text.is_ok_and(|chunks| chunks.is_empty()));
        assert!(length % 3 != 0 || length > 768 || Photo::decode(&file, Path::new("x.png")).is_ok(), "{length}");
    }
    Ok(())
}

/// A few bytes that promise as many pixels as are read are no reason to make room for them.
#[test]
fn no_more_pixels_are_made_than_a_file_can_hold() -> TestResult {
    let header = [&16384u32.to_be_bytes()[..], &8192u32.to_be_bytes(), &[16, 6, 0, 0, 0]].concat();
    let row = compressed(&[0; 1 + 16384 * 8])?;
    let file = png_file([(b"IHDR", &header[..]), (b"IDAT", &row), (b"IEND", &[])]);
    let error = Photo::decode(&file, Path::new("x.png")).err().ok_or("it was read")?;
    assert!(error.to_string().contains("it is truncated: its data end before"), "{error}");
    // The densest file that there is: nothing but zeros.
    let header = [&2000u32.to_be_bytes()[..], &2000u32.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let file = png_file([(b"IHDR", &header[..]), (b"IDAT", &compressed(&[0; 2001 * 2000])?), (b"IEND", &[])]);
    assert!(Photo::decode(&file, Path::new("x.png"))?.to_picture().rgb().iter().all(|&sample| sample == 0));
    Ok(())
}

/// Text that is stored compressed is read up to a length that no record has.
#[test]
fn compressed_text_is_bounded() -> TestResult {
    let header = [&1u32.to_be_bytes()[..], &1u32.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let file = |length: usize| -> Result<Vec<u8>, std::io::Error> {
        let text = [b"note\0\x01\0\0\0", &compressed(&vec![b'a'; length])?[..]].concat();
        Ok(png_file([(b"IHDR", &header[..]), (b"iTXt", &text), (b"IDAT", &compressed(&[0, 0])?), (b"IEND", &[])]))
    };
    let read = read_png_text(&file(100_000)?, Path::new("x.png"))?;
    assert_eq!(read, [TextChunk::new("note", "a".repeat(100_000))]);
    let error = read_png_text(&file(100_000_000)?, Path::new("x.png"));
    assert!(error.is_err_and(|error| error.to_string().contains("x.png is not a usable PNG file")));
    Ok(())
}

#[test]
fn a_bad_file_has_one_clear_error() -> TestResult {
    let folder = tempfile::tempdir()?;
    let error = |name: &str, bytes: &[u8]| -> Result<String, Box<dyn std::error::Error>> {
        let path = folder.path().join(name);
        fs::write(&path, bytes)?;
        let message = Photo::read(&path).err().ok_or(format!("{name} was read"))?.to_string();
        assert!(message.contains(name) && !message.contains('\n'), "{message}");
        assert_eq!(Mask::read(&path).err().map(|e| e.to_string()).as_ref(), Some(&message));
        Ok(message)
    };
    assert!(error("empty.png", b"")?.ends_with("is not a usable picture: it is empty (0 bytes)"));
    assert!(
        error("text.png", b"not a picture")?
            .contains("of no picture format that is read; save it as PNG, JPEG or WebP")
    );
    assert!(error("two.png", b"\x89P")?.contains("no picture format"));
    assert!(error("animal.gif", b"GIF89a........")?.contains("it is a GIF file; save it as PNG"));
    assert!(error("phone.heic", b"\0\0\0\x18ftypheic....")?.contains("HEIC"));
    assert!(
        error("wide.png", &header_alone(100_000, 1))?
            .contains("it has 100000x1 pixels, and the limits are 16384 a side")
    );
    assert!(error("most.png", &header_alone(u32::MAX >> 1, u32::MAX >> 1))?.contains("2147483647x2147483647"));
    assert!(error("area.png", &header_alone(16384, 16384))?.contains("134217728 in all"));
    assert!(error("strip.png", &header_alone(3300, 100))?.contains("at most 32 times the shorter"));
    assert!(error("pixels.png", &header_alone(16000, 8000))?.contains("truncated"));
    let path = folder.path().join("missing.png");
    assert!(
        Photo::read(&path)
            .is_err_and(|e| e.to_string().starts_with("cannot read") && e.to_string().contains("missing.png"))
    );
    assert!(Photo::read(folder.path()).is_err_and(|e| e.to_string().starts_with("cannot read")));

    let whole = fs::read(self::folder("files/orientation1.jpg"))?;
    assert!(error("half.jpg", &whole[..whole.len() / 2])?.contains("it is truncated"));
    // A name says nothing: a JPEG called PNG is read.
    fs::write(&path, &whole)?;
    assert_eq!(Photo::read(&path)?.width(), 40);
    Ok(())
}

#[test]
fn a_truncated_file_is_an_error_or_whole() -> TestResult {
    for (path, parts) in files("files")? {
        if parts[1] == "expected" {
            continue;
        }
        let bytes = fs::read(&path)?;
        let whole = Photo::decode(&bytes, &path)?;
        for length in (0..bytes.len()).step_by(13) {
            if let Ok(photo) = Photo::decode(&bytes[..length], &path) {
                assert_eq!(photo.samples(), whole.samples(), "{length} of {} bytes of {}", bytes.len(), path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn damaged_bytes_never_end_the_program() -> TestResult {
    let mut random = Random(99);
    for (path, parts) in files("files")? {
        let bytes = fs::read(&path)?;
        for _ in 0..if parts[1] == "expected" { 0 } else { 100 } {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random.below(4) {
                let i = random.below(damaged.len());
                damaged[i] = random.next() as u8;
            }
            if let Ok(photo) = Photo::decode(&damaged, &path) {
                assert!(photo.width() * photo.height() * photo.color().channels() == photo.samples().len());
            }
        }
    }
    Ok(())
}
