//! Data sets, from small files that the tests make themselves.

use flate2::{Compression, write::GzEncoder};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tweedie::images::{ColorType, Photo, Picture, Samples};
use tweedie::training::data::{
    Augmentation, BatchSource, Batches, FolderOptions, HeldOutBatch, ImageSet, Loader, Split, read_folder, read_idx,
    read_set,
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// An IDX file: magic number, dimensions, values.
fn idx(magic: u32, dims: &[u32], values: &[u8]) -> Vec<u8> {
    let header = [magic].into_iter().chain(dims.iter().copied()).flat_map(u32::to_be_bytes);
    header.chain(values.iter().copied()).collect()
}

/// `count` images of 3x2 whose values count up through the set.
fn images(count: u32) -> Vec<u8> {
    idx(0x803, &[count, 3, 2], &(0..6 * count).map(|v| v as u8).collect::<Vec<_>>())
}

fn labels(labels: &[u8]) -> Vec<u8> {
    idx(0x801, &[labels.len() as u32], labels)
}

fn gzip(bytes: &[u8]) -> TestResult<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// The message for a folder with these training files.
fn message(images: &[u8], labels: &[u8]) -> TestResult<String> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("train-images-idx3-ubyte"), images)?;
    std::fs::write(folder.path().join("train-labels-idx1-ubyte"), labels)?;
    Ok(read_idx(folder.path(), Split::Train).err().ok_or("it was read")?.to_string())
}

#[test]
fn idx_files_are_read_plain_and_compressed_under_either_name() -> TestResult {
    let write = |folder: &Path, name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes);
    let mut sets = Vec::new();
    for (images_name, labels_name, compressed) in [
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", false),
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", true),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte", false),
        ("t10k-images.idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", true),
        // Decompressed on the way, name kept.
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", false),
    ] {
        let folder = tempfile::tempdir()?;
        let (images, labels) = (images(4), labels(&[2, 0, 1, 2]));
        let bytes = if compressed { [gzip(&images)?, gzip(&labels)?] } else { [images, labels] };
        write(folder.path(), images_name, &bytes[0])?;
        write(folder.path(), labels_name, &bytes[1])?;
        sets.push(read_idx(folder.path(), Split::Test)?);
    }
    let set = &sets[0];
    assert!(sets.iter().all(|other| other == set));
    assert_eq!((set.len(), set.channels(), set.height(), set.width()), (4, 1, 3, 2));
    assert_eq!(set.labels(), Some(&[2, 0, 1, 2][..]));
    assert_eq!(set.classes(), ["0", "1", "2"]);
    assert_eq!(set.pixels(2), Some(&[12, 13, 14, 15, 16, 17][..]));
    assert_eq!(set.pixels(4), None);
    Ok(())
}

#[test]
fn a_damaged_idx_file_is_one_clear_error() -> TestResult {
    let (good, good_labels) = (images(4), labels(&[2, 0, 1, 2]));
    let compressed = gzip(&good)?;
    let mut flipped = compressed.clone();
    let last = flipped.len() - 6; // in the checksum
    flipped[last] ^= 1;
    let cases: [(&[u8], &[u8], &[&str]); 11] = [
        (&idx(0x804, &[1, 1], &[0]), &good_labels, &["0x00000804", "0x00000803", "images"]),
        (&good_labels, &good, &["0x00000801", "0x00000803"]),
        (&good, &good, &["0x00000803", "0x00000801", "labels"]),
        (&good[..10], &good_labels, &["ends within its header"]),
        (&good[..20], &good_labels, &["promises 24 bytes of images and it has 4"]),
        (&[&good[..], &[0]].concat(), &good_labels, &["promises 24 bytes of images and it has more"]),
        (&compressed[..compressed.len() - 9], &good_labels, &["truncated", "24 bytes of images"]),
        (&flipped, &good_labels, &["gzip", "damaged"]),
        (&good, &labels(&[2, 0, 1]), &["3 labels", "4 images"]),
        (&idx(0x803, &[u32::MAX, u32::MAX, u32::MAX], &[0]), &good_labels, &["4294967295", "8 GiB"]),
        (&idx(0x803, &[0, 28, 28], &[]), &labels(&[]), &["[0, 28, 28]", "hold nothing"]),
    ];
    for (images, labels, parts) in cases {
        let message = message(images, labels)?;
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
    }
    Ok(())
}

/// A header may promise 8 GiB; what is asked for is what the file has.
#[test]
fn a_promise_costs_no_memory() -> TestResult {
    let promise = idx(0x803, &[1 << 20, 64, 128], &[7; 100]);
    assert!(message(&promise, &labels(&[0]))?.contains("promises 8589934592 bytes of images and it has 100"));
    assert!(message(&gzip(&promise)?, &labels(&[0]))?.contains("and it has 100"));
    Ok(())
}

#[test]
fn what_to_do_without_data() -> TestResult {
    let folder = tempfile::tempdir()?;
    let message = read_idx(folder.path(), Split::Train).err().ok_or("it was read")?.to_string();
    for part in ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "`download`", "dataset-fashion-mnist"] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    Ok(())
}

/// `count` images of two channels, 3 high and 4 wide, value by value different from their neighbours.
fn numbered(count: usize) -> TestResult<Arc<ImageSet>> {
    let set = ImageSet::new([2, 3, 4], (0..count * 24).map(|v| (v * 7 % 256) as u8).collect())?;
    let labels = (0..count as u32).map(|i| i % 3).collect();
    Ok(Arc::new(set.with_labels(labels, ["a", "b", "c"].map(String::from).to_vec())?))
}

#[test]
fn every_image_comes_once_in_an_epoch() -> TestResult {
    let mut batches = Batches::new(numbered(10)?, 4, 5)?;
    assert_eq!(batches.in_epochs(2), 5);
    let row: Vec<usize> = (0..5).flat_map(|n| batches.indices(n)).collect();
    for epoch in row.chunks(10) {
        assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), 10, "{epoch:?}");
    }
    assert_ne!(row[..10], row[10..]);
    assert_eq!((0..5).map(|n| batches.epoch(n)).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    // A batch that is larger than the set.
    let mut large = Batches::new(numbered(10)?, 25, 5)?;
    assert_eq!(large.indices(0)[..20], row);
    assert!(Batches::new(numbered(10)?, 0, 5).is_err());
    Ok(())
}

#[test]
fn a_loader_gives_the_same_batches_from_any_start() -> TestResult {
    let augmentation = Augmentation { flip: true, shift: 1, crop: None };
    let batches = Batches::new(numbered(10)?, 4, 5)?.with_augmentation(augmentation)?;
    let mut whole = Loader::start(batches.clone(), 0)?;
    let mut all = Vec::new();
    for _ in 0..12 {
        let batch = whole.next_batch()?;
        all.push((batch.indices, batch.images.flatten_all()?.to_vec1::<f32>()?));
    }
    for start in [11, 3, 0] {
        let mut resumed = Loader::start(batches.clone(), start as u64)?;
        for (indices, values) in &all[start..] {
            let batch = resumed.next_batch()?;
            assert_eq!(&batch.indices, indices);
            assert_eq!(&batch.images.flatten_all()?.to_vec1::<f32>()?, values);
        }
        // Dropped while its thread waits to hand over the next.
    }
    let mut other = Batches::new(numbered(10)?, 4, 6)?;
    assert_ne!(other.indices(0), all[0].0);
    Ok(())
}

/// Every image that is not held out comes once in an epoch, and those that are come in batches of their own, unchanged.
#[test]
fn held_out_images_are_in_no_batch() -> TestResult {
    let set = numbered(20)?;
    let mut batches = Batches::new(set.clone(), 4, 3)?.holding_out(0.25)?;
    let held: Vec<usize> = batches.held_out()?.into_iter().flat_map(|held| held.batch.indices).collect();
    assert_eq!(held.len(), 5);
    let mut seen: Vec<usize> = (0..15).flat_map(|n| batches.indices(n)).collect();
    assert!(seen.iter().all(|index| !held.contains(index)));
    seen.sort_unstable();
    let expected: Vec<usize> = (0..20).filter(|index| !held.contains(index)).flat_map(|index| [index; 4]).collect();
    assert_eq!(seen, expected);
    // Augmentation is not for them.
    let flip = Augmentation { flip: true, shift: 1, crop: None };
    let mut moved = Batches::new(set.clone(), 4, 3)?.with_augmentation(flip)?.holding_out(0.25)?;
    for HeldOutBatch { batch, .. } in moved.held_out()? {
        let difference = (batch.images - set.images(&batch.indices)?)?.abs()?.max_all()?;
        assert_eq!(difference.to_scalar::<f32>()?, 0.0);
    }
    assert!(Batches::new(set, 4, 3)?.held_out()?.is_empty());
    Ok(())
}

#[test]
fn a_batch_has_its_images_scaled_and_labelled() -> TestResult {
    let set = numbered(10)?;
    let batch = Batches::new(set.clone(), 4, 5)?.get(7)?;
    assert_eq!(batch.images.dims(), [4, 2, 3, 4]);
    let labels = batch.labels.ok_or("no labels")?.to_vec1::<u32>()?;
    for (i, &index) in batch.indices.iter().enumerate() {
        assert_eq!(labels[i], (index % 3) as u32);
        let values = batch.images.get(i)?.flatten_all()?.to_vec1::<f32>()?;
        for (value, &byte) in values.iter().zip(set.pixels(index).ok_or("no image")?) {
            // One rounding of a product and one of a sum.
            assert!((f64::from(*value) - (2.0 * f64::from(byte) / 255.0 - 1.0)).abs() < 1.2e-7);
        }
    }
    Ok(())
}

/// Every level survives the way to a network's values and back.
#[test]
fn bytes_come_back_as_pictures() -> TestResult {
    let bytes: Vec<u8> = (0..=255).collect();
    let set = ImageSet::new([1, 16, 16], bytes.clone())?;
    let picture = Picture::from_tensor(&set.images(&[0])?)?.remove(0);
    assert_eq!(picture.rgb().chunks(3).map(|pixel| pixel[0]).collect::<Vec<_>>(), bytes);
    Ok(())
}

/// All of the nine shifts by at most one pixel, mirrored and not, occur and nothing else does.
#[test]
fn augmentation_moves_and_mirrors() -> TestResult {
    let set = Arc::new(ImageSet::new([1, 3, 3], (10..19).collect())?);
    let mut batches =
        Batches::new(set, 1000, 1)?.with_augmentation(Augmentation { flip: true, shift: 1, crop: None })?;
    let batch = batches.get(0)?;
    let mut wanted = BTreeSet::new();
    for (down, right, flip) in (0..18).map(|i| (i % 3 - 1, i / 3 % 3 - 1, i >= 9)) {
        let value = |y: i32, x: i32| {
            let inside = (0..3).contains(&y) && (0..3).contains(&x);
            if !inside { 10 } else { 10 + 3 * y as u8 + if flip { 2 - x as u8 } else { x as u8 } }
        };
        wanted.insert((0..9).map(|i| value(i / 3 - down, i % 3 - right)).collect::<Vec<u8>>());
    }
    let mut seen = BTreeSet::new();
    for picture in Picture::from_tensor(&batch.images)? {
        seen.insert(picture.rgb().chunks(3).map(|pixel| pixel[0]).collect::<Vec<u8>>());
    }
    assert_eq!(wanted, seen);
    Ok(())
}

/// Writes a grey picture of one value, or an RGB one of three.
fn write_png(path: &Path, (width, height): (usize, usize), pixel: &[u8]) -> TestResult {
    let color = if pixel.len() == 1 { ColorType::Grey } else { ColorType::Rgb };
    let photo = Photo::new(width, height, color, Samples::Eight(pixel.repeat(width * height)))?;
    std::fs::create_dir_all(path.parent().ok_or("no parent")?)?;
    Ok(std::fs::write(path, photo.encode_png(&[])?)?)
}

/// Reads a folder in which `write` has put files.
fn folder(write: impl Fn(&Path) -> TestResult, options: FolderOptions) -> TestResult<tweedie::Result<ImageSet>> {
    let folder = tempfile::tempdir()?;
    write(folder.path())?;
    Ok(read_folder(folder.path(), options))
}

/// The first value of each image.
fn values(set: &ImageSet) -> Vec<u8> {
    (0..set.len()).filter_map(|i| set.pixels(i)).map(|pixels| pixels[0]).collect()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn sub_folders_are_classes_in_their_order() -> TestResult {
    let set = folder(
        |f| {
            write_png(&f.join("10/a.png"), (5, 4), &[1])?;
            write_png(&f.join("9/deep/er/b.PNG"), (5, 4), &[2])?;
            write_png(&f.join("9/a.png"), (5, 4), &[3])?;
            // Passed over: hidden, no picture, a folder without one.
            write_png(&f.join("9/.hidden.png"), (1, 1), &[4])?;
            std::fs::write(f.join("README.txt"), "about")?;
            std::fs::create_dir(f.join("2"))?;
            Ok(())
        },
        FolderOptions::default(),
    )??;
    assert_eq!((set.len(), set.channels(), set.height(), set.width()), (3, 1, 4, 5));
    assert_eq!((set.classes(), set.labels()), (&owned(&["9", "10"])[..], Some(&[0, 0, 1][..])));
    assert_eq!(values(&set), [3, 2, 1]);
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() -> TestResult {
    let elsewhere = tempfile::tempdir()?;
    write_png(&elsewhere.path().join("a.png"), (2, 2), &[8])?;
    let set = folder(
        |f| {
            write_png(&f.join("cat/a.png"), (2, 2), &[7])?;
            std::os::unix::fs::symlink(f, f.join("cat/back"))?;
            std::os::unix::fs::symlink(elsewhere.path(), f.join("dog"))?;
            Ok(())
        },
        FolderOptions::default(),
    )??;
    assert_eq!((set.classes(), values(&set)), (&owned(&["cat", "dog"])[..], vec![7, 8]));
    let broken =
        folder(|f| Ok(std::os::unix::fs::symlink(f.join("gone"), f.join("a.png"))?), FolderOptions::default())?;
    assert!(broken.err().ok_or("it was read")?.to_string().contains("a.png"));
    Ok(())
}

#[test]
fn metadata_gives_labels_and_texts() -> TestResult {
    let set = folder(
        |f| {
            for (name, value) in [("b.png", 1), ("sub/a.png", 2), ("a.png", 3), ("not listed.png", 4)] {
                write_png(&f.join(name), (2, 2), &[value])?;
            }
            let lines = [
                r#"{"file_name": "b.png", "label": "fox", "text": "a fox", "width": 2}"#,
                "",
                r#"{"file_name": "sub/a.png", "class": "crow", "caption": "日本"}"#,
                r#"{"file_name": "a.png", "label": "fox", "text": ""}"#,
            ];
            Ok(std::fs::write(f.join("metadata.jsonl"), lines.join("\n"))?)
        },
        FolderOptions::default(),
    )??;
    assert_eq!(values(&set), [3, 1, 2]);
    assert_eq!((set.classes(), set.labels()), (&owned(&["crow", "fox"])[..], Some(&[1, 1, 0][..])));
    assert_eq!(set.captions(), Some(&[owned(&[""]), owned(&["a fox"]), owned(&["日本"])][..]));
    let numbered = |label: &'static str| {
        move |f: &Path| {
            write_png(&f.join("a.png"), (2, 2), &[1])?;
            Ok(std::fs::write(f.join("metadata.jsonl"), format!(r#"{{"file_name": "a.png", "label": {label}}}"#))?)
        }
    };
    let set = folder(numbered("2"), FolderOptions::default())??;
    assert_eq!((set.classes(), set.labels()), (&owned(&["0", "1", "2"])[..], Some(&[2][..])));
    for (label, part) in [("4294967295", "too large"), ("-1", "whole numbers"), ("[0]", "whole numbers")] {
        let message = folder(numbered(label), FolderOptions::default())?.err().ok_or("it was read")?.to_string();
        assert!(message.contains(part), "{message}");
    }
    Ok(())
}

#[test]
fn a_bad_line_of_metadata_is_named() -> TestResult {
    for (lines, parts) in [
        ("not json", &["line 1"][..]),
        ("{\"file_name\": \"a.png\"}\n{\"label\": 1}", &["line 2", "file_name"]),
        ("{\"file_name\": \"../a.png\"}", &["../a.png", "not below"]),
        ("{\"file_name\": \"/a.png\"}", &["not below"]),
        ("{\"file_name\": \"a.png\"}\n{\"file_name\": \"a.png\"}", &["lines 1 and 2"]),
        ("{\"file_name\": \"a.png\", \"label\": 1}\n{\"file_name\": \"b.png\"}", &["line 1", "line 2", "label"]),
        ("{\"file_name\": \"a.png\", \"text\": 1}", &["line 1", "string"]),
        ("{\"file_name\": \"gone.png\"}", &["gone.png"]),
        // The mark with which some editors begin a file is none of its text.
        ("\u{feff}{\"file_name\": \"gone.png\"}", &["gone.png"]),
        ("\n", &["names no picture"]),
    ] {
        let write = |f: &Path| {
            write_png(&f.join("a.png"), (2, 2), &[1])?;
            write_png(&f.join("b.png"), (2, 2), &[1])?;
            Ok(std::fs::write(f.join("metadata.jsonl"), lines)?)
        };
        let message = folder(write, FolderOptions::default())?.err().ok_or("it was read")?.to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
    }
    Ok(())
}

#[test]
fn sizes_must_be_one_unless_they_are_made_so() -> TestResult {
    let write = |f: &Path| {
        write_png(&f.join("a.png"), (6, 4), &[10])?;
        write_png(&f.join("b.png"), (4, 8), &[20])
    };
    let message = folder(write, FolderOptions::default())?.err().ok_or("it was read")?.to_string();
    for part in ["6x4", "a.png", "4x8", "b.png", "`resize`"] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    let set = folder(write, FolderOptions { resize: Some(3), channels: None })??;
    assert_eq!((set.height(), set.width(), values(&set)), (3, 3, vec![10, 20]));
    // The centre of three stripes.
    let stripes = |f: &Path| {
        let row = [vec![0; 3], vec![200; 4], vec![0; 3]].concat();
        let photo = Photo::new(10, 4, ColorType::Grey, Samples::Eight(row.repeat(4)))?;
        Ok(std::fs::write(f.join("a.png"), photo.encode_png(&[])?)?)
    };
    let set = folder(stripes, FolderOptions { resize: Some(4), channels: None })??;
    assert_eq!(set.pixels(0), Some(&[200; 16][..]));
    assert!(folder(stripes, FolderOptions { resize: Some(0), channels: None })?.is_err());
    Ok(())
}

#[test]
fn colours_make_the_set_rgb_unless_grey_is_asked_for() -> TestResult {
    let write = |f: &Path| {
        write_png(&f.join("a.png"), (1, 2), &[9])?;
        write_png(&f.join("b.png"), (1, 2), &[200, 100, 50])
    };
    let set = folder(write, FolderOptions::default())??;
    assert_eq!(set.channels(), 3);
    assert_eq!(set.pixels(0), Some(&[9; 6][..]));
    assert_eq!(set.pixels(1), Some(&[200, 200, 100, 100, 50, 50][..]));
    let set = folder(write, FolderOptions { resize: None, channels: Some(1) })??;
    // 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    assert_eq!((set.channels(), values(&set)), (1, vec![9, 124]));
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_used_says_why() -> TestResult {
    type Case<'a> = (&'a dyn Fn(&Path) -> TestResult, &'a [&'a str]);
    let cases: [Case<'_>; 4] = [
        (&|_| Ok(()), &["empty", "PNG", "metadata.jsonl", "IDX"]),
        (&|f| Ok(std::fs::write(f.join("x.gif"), "GIF89a")?), &["without a picture", "x.gif"]),
        (
            &|f| {
                write_png(&f.join("a.png"), (2, 2), &[1])?;
                write_png(&f.join("cat/a.png"), (2, 2), &[1])
            },
            &["a.png", "sub-folder cat"],
        ),
        (
            &|f| {
                write_png(&f.join("a.png"), (2, 2), &[1])?;
                let bytes = std::fs::read(f.join("a.png"))?;
                Ok(std::fs::write(f.join("b.png"), &bytes[..40])?)
            },
            &["b.png", "truncated"],
        ),
    ];
    for (write, parts) in cases {
        let message = folder(write, FolderOptions::default())?.err().ok_or("it was read")?.to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
    }
    Ok(())
}

#[test]
fn either_kind_of_set_is_found_in_a_folder() -> TestResult {
    let folder = tempfile::tempdir()?;
    let options = FolderOptions::default();
    write_png(&folder.path().join("train/a.png"), (2, 2), &[1])?;
    write_png(&folder.path().join("test/a.png"), (2, 2), &[2])?;
    assert_eq!(values(&read_set(folder.path(), Split::Train, options)?), [1]);
    assert_eq!(values(&read_set(folder.path(), Split::Test, options)?), [2]);
    std::fs::write(folder.path().join("train-images-idx3-ubyte"), images(1))?;
    std::fs::write(folder.path().join("train-labels-idx1-ubyte"), labels(&[3]))?;
    assert_eq!(read_set(folder.path(), Split::Train, options)?.height(), 3);
    let gone = read_set(&folder.path().join("gone"), Split::Train, options);
    assert!(gone.err().ok_or("it was read")?.to_string().contains("`download`"));
    Ok(())
}
