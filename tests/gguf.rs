//! GGUF files: blocks and files of the reference, models of every format, and headers that cannot be.

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tweedie::NoiseLevel;
use tweedie::checkpoints::{BlockFormat, Checkpoint, ElementType, Held, ModelFiles, Precision, SingleFile, TensorFile};
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Cache, Call, Network};
use tweedie::families::{Families, FileFormat, Loader, convert_to_file, convert_to_folder};
use tweedie::files::Existing;
use tweedie::images::Photo;
use tweedie::layers::WeightSource;
use tweedie::models::{UNet2DConditionConfig, UNet2DConditionModel};
use tweedie_pipelines::{DTypeChoice, DeviceChoice, LatentDiffusion, Model, TextToImageRequest};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;
type Tensors = BTreeMap<String, Tensor>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn load(path: &Path) -> TestResult<Tensors> {
    Ok(candle_core::safetensors::load(path, &Device::Cpu)?.into_iter().collect())
}

fn open(folder: &Path, bytes: &[u8]) -> tweedie::Result<TensorFile> {
    std::fs::write(folder.join("x.gguf"), bytes).map_err(tweedie::Error::io("write", folder))?;
    TensorFile::open(&ModelFiles::folder(folder)?, "x.gguf")
}

fn bits(tensor: &Tensor) -> TestResult<Vec<u32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// All tensors of a file, in f32.
fn values(file: &TensorFile) -> TestResult<Tensors> {
    let read = |stored: tweedie::checkpoints::StoredTensor| {
        let values = file.read(&stored, DType::F32, &Device::Cpu)?.ok_or("not finite")?;
        assert_eq!(values.dims(), stored.shape);
        Ok((stored.name, values))
    };
    file.tensors().into_iter().map(read).collect()
}

#[test]
fn blocks_hold_what_the_reference_says() -> TestResult {
    let stored = load(&golden("gguf/blocks.safetensors"))?;
    let floats = stored["floats"].flatten_all()?.to_vec1::<f32>()?;
    for format in BlockFormat::ALL {
        let name = ElementType::Blocks(format).to_string();
        let blocks = stored[&format!("{name}.blocks")].flatten_all()?.to_vec1::<u8>()?;
        let mut values = vec![0.0; blocks.len() / format.bytes() * format.values()];
        format.widen(&blocks, &mut values);
        let found: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
        assert_eq!(found, bits(&stored[&format!("{name}.values")])?, "{name}");
        // In eight bits they are the same.
        let numbers: Vec<u32> = format.eight_bits(&blocks).widened().into_iter().map(f32::to_bits).collect();
        assert_eq!(numbers, found, "{name}");
        if let Some(expected) = stored.get(&format!("{name}.of_floats")) {
            assert_eq!(format.narrow(&floats), expected.flatten_all()?.to_vec1::<u8>()?, "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_file_of_the_reference_is_read() -> TestResult {
    let expected = load(&golden("gguf/tensors.safetensors"))?;
    let file = TensorFile::open(&ModelFiles::folder(&golden("gguf"))?, "tensors.gguf")?;
    assert_eq!(file.metadata("general.architecture"), Some("sd1"));
    assert_eq!(file.metadata("tokens"), None);
    let found = values(&file)?;
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &found {
        assert_eq!((tensor.dims(), bits(tensor)?), (expected[name].dims(), bits(&expected[name])?), "{name}");
    }
    for stored in file.tensors() {
        for dtype in [DType::F16, DType::BF16] {
            let narrow = file.read(&stored, dtype, &Device::Cpu)?.ok_or("not finite")?;
            assert_eq!(narrow.dtype(), dtype);
            let exact = expected[&stored.name].to_dtype(DType::F32)?;
            // Half a unit in the last of 11 and of 8 bits; f16 ends at multiples of 2^-24.
            let share = if dtype == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
            let beyond = ((narrow.to_dtype(DType::F32)? - &exact)?.abs()? - (exact.abs()? * share)?)?;
            assert!(
                beyond.flatten_all()?.max(0)?.to_scalar::<f32>()? <= 2f32.powi(-25),
                "{} in {dtype:?}",
                stored.name
            );
        }
    }
    Ok(())
}

/// The picture that a model in a file makes.
fn picture(path: PathBuf) -> TestResult<Photo> {
    let model = Model::File { path, config: Some(golden("models/sd15")) };
    let model = LatentDiffusion::builder().model(model).device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()?;
    let request: TextToImageRequest =
        serde_json::from_str(r#"{"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 3}"#)?;
    Ok(model.generate(&request)?.pictures.swap_remove(0))
}

/// The bits of what the UNet of a model in a file makes of a wave, with its matrices held in some form.
fn unet_output(path: &Path, held: Held) -> TestResult<Vec<u32>> {
    let files = Model::File { path: path.into(), config: Some(golden("models/sd15")) }.files()?;
    let config = UNet2DConditionConfig::from_fields(&files.config("unet", "config.json")?)?;
    let loader = Loader { held, ..Loader::new(&files, &Device::Cpu) };
    let (unet, _) =
        loader.load("unet", &[], |weights| UNet2DConditionModel::new(weights, config.clone(), DType::F32))?;
    let wave = |shape: &[usize], step: f32| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * step).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    };
    let text = Conditioning::text(wave(&[1, 77, config.cross_attention_dim[0]], 0.11)?);
    let x = wave(&[1, config.in_channels, 16, 16], 0.37)?;
    let output = unet.forward(&Call::new(&x, NoiseLevel::from_sigma(500.0, 1.0), &text, &Cache::default()))?;
    Ok(output.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

#[test]
fn a_model_in_every_format_is_the_model_of_its_widened_weights() -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let files = ModelFiles::folder(&golden("models/sd15"))?;
    convert_to_file(&files, &at("whole.safetensors"), None, Existing::Stays)?;
    let original = load(&at("whole.safetensors"))?;
    let written = BlockFormat::ALL.into_iter().filter(|format| format.can_be_written()).map(ElementType::Blocks);
    let floats = [Dtype::F32, Dtype::F16, Dtype::BF16].map(ElementType::Plain);
    for matrices in written.chain(floats) {
        let name = matrices.to_string().to_lowercase();
        let path = at(&format!("{name}.gguf"));
        convert_to_file(&files, &path, FileFormat::Gguf(matrices), Existing::Stays)?;
        let file = SingleFile::open(&path)?;
        let found = values(file.file())?;
        assert_eq!(found.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>(), "{name}");
        let mut in_blocks = 0;
        for stored in file.file().tensors() {
            let (exact, found) = (&original[&stored.name].to_dtype(DType::F32)?, &found[&stored.name]);
            let expected = match stored.dtype {
                ElementType::Blocks(format) => {
                    in_blocks += 1;
                    let mut widened = vec![0.0; exact.elem_count()];
                    format.widen(&format.narrow(&exact.flatten_all()?.to_vec1::<f32>()?), &mut widened);
                    Tensor::from_vec(widened, exact.shape(), &Device::Cpu)?
                }
                ElementType::Plain(Dtype::F16) => exact.to_dtype(DType::F16)?,
                ElementType::Plain(Dtype::BF16) => exact.to_dtype(DType::BF16)?,
                ElementType::Plain(_) => exact.clone(),
            };
            assert_eq!(bits(found)?, bits(&expected)?, "{} in {name}", stored.name);
            assert!(stored.shape.len() > 1 || stored.dtype == Dtype::F32.into(), "{}", stored.name);
        }
        assert_eq!(in_blocks > 20, matches!(matrices, ElementType::Blocks(_)), "{in_blocks} in {name}");
        // The same weights in a file that keeps them wide are the same model.
        let wide = at(&format!("{name}.safetensors"));
        candle_core::safetensors::save(&found.into_iter().collect(), &wide)?;
        // Kept as they are stored they are too, from the network's weights to its output.
        let output = unet_output(&wide, Held::AsAsked)?;
        assert!(
            unet_output(&path, Held::AsAsked)? == output && unet_output(&path, Held::AsStored)? == output,
            "{name}"
        );
        assert!(picture(path)? == picture(wide)?, "{name}");
    }
    // A model that was read from blocks goes on in any form.
    let q8 = Model::File { path: at("q8_0.gguf"), config: Some(golden("models/sd15")) }.files()?;
    convert_to_folder(&q8, &at("folder"), Some(DType::F16), Existing::Stays)?;
    convert_to_file(&q8, &at("again.gguf"), FileFormat::Gguf(ElementType::Blocks(BlockFormat::Q8_0)), Existing::Stays)?;
    for (name, tensor) in values(SingleFile::open(&at("again.gguf"))?.file())? {
        let before = &values(SingleFile::open(&at("q8_0.gguf"))?.file())?[&name];
        let off = (tensor - before)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        // Values that are multiples of a scale already come back but for the scale's last bit.
        assert!(off < 1e-3, "{name} is off by {off}");
    }
    Ok(())
}

/// A file as the format's description has it: entries of the metadata as they are, then tensors of f32, or of another number.
fn file(entries: &[(&str, u32, &[u8])], tensors: &[(&str, &[u64], u32, u64)], values: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes = [b"GGUF".as_slice(), &3u32.to_le_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    for (name, kind, value) in entries {
        bytes.extend([&text(name), kind.to_le_bytes().as_slice(), value].concat());
    }
    for (name, dimensions, kind, offset) in tensors {
        bytes.extend([text(name).as_slice(), &(dimensions.len() as u32).to_le_bytes()].concat());
        dimensions.iter().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(values);
    bytes
}

#[test]
fn a_unet_alone_goes_with_the_rest_of_its_model() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tensors: [(&str, &[u64], u32, u64); 2] =
        [("input_blocks.0.0.weight", &[3, 3, 4, 1], 0, 0), ("out.2.weight", &[1, 2], 0, 160)];
    let alone = open(folder.path(), &file(&[], &tensors, &[0; 192]))?;
    let names: Vec<_> = alone.tensors().into_iter().map(|stored| (stored.name, stored.shape)).collect();
    let expected = [("input_blocks.0.0.weight", vec![1, 4, 3, 3]), ("out.2.weight", vec![2, 1])];
    assert_eq!(names, expected.map(|(name, shape)| (name.to_owned(), shape)));
    values(&alone)?;
    let message = Families::built_in().detect_file(&alone).err().ok_or("it was known")?.to_string();
    assert!(message.contains("a UNet alone") && message.contains("`config`"), "{message}");

    // As ComfyUI-GGUF has it: the UNet in one file, the rest of the model in its folder.
    let at = |name: &str| folder.path().join(name);
    let files = ModelFiles::folder(&golden("models/sd15"))?;
    convert_to_file(&files, &at("whole.safetensors"), None, Existing::Stays)?;
    let whole = load(&at("whole.safetensors"))?;
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for (name, tensor) in &whole {
        let Some(name) = name.strip_prefix("model.diffusion_model.") else { continue };
        let dimensions: Vec<u64> = tensor.dims().iter().rev().map(|&dimension| dimension as u64).collect();
        infos.push((name, dimensions, data.len() as u64));
        data.extend(bits(tensor)?.into_iter().flat_map(u32::to_le_bytes));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let infos: Vec<_> = infos.iter().map(|(name, dimensions, at)| (*name, &dimensions[..], 0, *at)).collect();
    std::fs::write(at("unet.gguf"), file(&[("general.architecture", 8, b"\x03\0\0\0\0\0\0\0sd1")], &infos, &data))?;
    assert!(picture(at("unet.gguf"))? == picture(at("whole.safetensors"))?);
    Ok(())
}

#[test]
fn headers_that_cannot_be_are_refused_in_words() -> TestResult {
    let folder = tempfile::tempdir()?;
    let refused = |bytes: &[u8], part: &str| -> TestResult {
        let message = open(folder.path(), bytes).err().ok_or_else(|| format!("was read: {part}"))?.to_string();
        assert!(message.contains(part) && message.contains("x.gguf"), "{message}");
        Ok(())
    };
    let good = file(&[("a", 4, &[1, 0, 0, 0])], &[("x", &[2, 3], 0, 0)], &[0; 32]);
    open(folder.path(), &good)?;
    refused(&good[..20], "ends within its header")?;
    refused(&good[..good.len() - 16], "may be truncated, get it again")?;
    refused(&[&good[..], &[0; 64]].concat(), "72 bytes follow")?;
    let version = |number: [u8; 4]| [&good[..4], &number, &good[8..]].concat();
    refused(&version([1, 0, 0, 0]), "version 1, and 2 and 3 are read")?;
    refused(&version([0, 0, 0, 3]), "the other order of bytes")?;
    refused(&file(&[], &[("x", &[256], 18, 0)], &[0; 98]), "IQ3_XXS, which is not read; get it in q8_0")?;
    refused(&file(&[], &[("x", &[256], 77, 0)], &[0; 98]), "number 77, which is not read")?;
    refused(&file(&[], &[("x", &[40, 32], 8, 0)], &[0; 1360]), "no whole blocks of Q8_0")?;
    refused(&file(&[], &[("x", &[1; 5], 0, 0)], &[0; 4]), "has 5 dimensions")?;
    refused(&file(&[], &[("x", &[u64::MAX, 2], 0, 0)], &[0; 4]), "which no tensor has")?;
    refused(&file(&[], &[("x", &[8], 0, u64::MAX - 31)], &[0; 32]), "may be truncated")?;
    refused(&file(&[], &[("x", &[1], 0, 16)], &[0; 32]), "no multiple of 32")?;
    refused(&file(&[], &[("x", &[16], 0, 0), ("y", &[8], 0, 32)], &[0; 64]), "y begins within another")?;
    refused(&file(&[], &[("x", &[1], 0, 0), ("x", &[1], 0, 32)], &[0; 64]), "two tensors x")?;
    refused(&file(&[("a", 99, &[])], &[], &[]), "the unknown type 99")?;
    refused(&file(&[("general.alignment", 4, &[3, 0, 0, 0])], &[], &[]), "no power of two")?;
    let shape = |dimensions: [u32; 2]| {
        let counted: Vec<u8> = dimensions.into_iter().flat_map(u32::to_le_bytes).collect();
        [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &counted].concat()
    };
    let laid_out = |dimensions| {
        let entry = shape(dimensions);
        file(&[("comfy.gguf.orig_shape.x", 9, &entry)], &[("x", &[6], 0, 0)], &[0; 32])
    };
    assert_eq!(open(folder.path(), &laid_out([3, 2]))?.tensors()[0].shape, [3, 2]);
    refused(&laid_out([3, 3]), "does not fit its 6 values")?;
    // Counts that no file has are not believed.
    let mut counts = good.clone();
    counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&counts, "more than 100000 tensors")?;
    counts = good.clone();
    counts[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(open(folder.path(), &counts).is_err());
    // A number that is none is found when it is read.
    let nan = file(&[], &[("x", &[32], 8, 0)], &[[0xff; 2].as_slice(), &[1; 32]].concat());
    let nan = open(folder.path(), &nan)?;
    assert!(nan.read(&nan.tensors()[0], DType::F32, &Device::Cpu)?.is_none());
    Ok(())
}

/// The thirds of a joined matrix whose rows end within blocks.
#[test]
fn rows_that_end_within_blocks_are_read_alone() -> TestResult {
    let folder = tempfile::tempdir()?;
    let floats: Vec<f32> = (0..9 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    let blocks = BlockFormat::Q8_0.narrow(&floats);
    let shape = [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &12u32.to_le_bytes(), &24u32.to_le_bytes()].concat();
    let name = "transformer.resblocks.0.attn.in_proj_weight";
    let entry = format!("comfy.gguf.orig_shape.{name}");
    let bytes = file(&[(&entry, 9, &shape)], &[(name, &[32, 9], 8, 0)], &blocks);
    std::fs::write(folder.path().join("x.gguf"), bytes)?;
    let file = SingleFile::open(&folder.path().join("x.gguf"))?;
    let mut names = tweedie::checkpoints::TensorNames::plain("");
    names.join(["q", "k", "v"].map(str::to_owned), name.into());
    let checkpoint = file.checkpoint("text_encoder", names.into(), None, DType::F32, &Device::Cpu);
    let mut widened = vec![0.0; floats.len()];
    BlockFormat::Q8_0.widen(&blocks, &mut widened);
    for (third, name) in ["q", "k", "v"].into_iter().enumerate() {
        let expected = &widened[third * 96..(third + 1) * 96];
        assert_eq!(checkpoint.tensor(name, &[4, 24])?.flatten_all()?.to_vec1::<f32>()?, expected);
    }
    checkpoint.finish(&[])?;
    Ok(())
}

/// A folder's weights may be in the form too: it is known by its first bytes.
#[test]
fn families_are_known_by_their_tensors() -> TestResult {
    let file = TensorFile::open(&ModelFiles::folder(&golden("gguf"))?, "tensors.gguf")?;
    let message = Families::built_in().detect_file(&file).err().ok_or("it was known")?.to_string();
    assert!(message.contains("of no known kind") && message.contains("tensors.gguf"), "{message}");
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("unet"))?;
    let to = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    std::fs::copy(golden("gguf/tensors.gguf"), to)?;
    let files = ModelFiles::folder(folder.path())?;
    let checkpoint = Checkpoint::open(&files, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
    assert_eq!(checkpoint.tensor("half.weight", &[4, 3])?.dims(), [4, 3]);
    Ok(())
}
