//! Data sets, from small files that the tests make themselves.

use flate2::{Compression, write::GzEncoder};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tweedie::images::Picture;
use tweedie::training::data::{Augmentation, Batches, ImageSet, Loader, Split, read_idx};

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
    for part in ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "--download", "dataset-fashion-mnist"] {
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
    let augmentation = Augmentation { flip: true, shift: 1 };
    let batches = Batches::new(numbered(10)?, 4, 5)?.with_augmentation(augmentation);
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
    let mut batches = Batches::new(set, 1000, 1)?.with_augmentation(Augmentation { flip: true, shift: 1 });
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
