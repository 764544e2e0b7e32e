//! Checkpoints that are damaged, or of a kind that is not read: one message each, whatever the file says.
//!
//! PyTorch's files are written by hand.

mod torch_files;

use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use torch_files::{checkpoint, tensor, text, with_pickle, zip};
use tweedie::ErrorKind;
use tweedie::checkpoints::{ModelFiles, SingleFile, TensorFile};
use tweedie::families::{Families, convert_to_file};
use tweedie::files::Existing;
use tweedie_pipelines::{DTypeChoice, DeviceChoice, LatentDiffusion, Model};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn safetensors(names: &[(&str, &[usize])]) -> TestResult<Vec<u8>> {
    let tensors =
        names.iter().map(|(name, shape)| Ok((name.to_string(), Tensor::zeros(*shape, DType::F32, &Device::Cpu)?)));
    let tensors = tensors.collect::<TestResult<BTreeMap<_, _>>>()?;
    Ok(safetensors::serialize(&tensors, None)?)
}

/// The tensors of the small model in one file.
fn whole(folder: &Path) -> TestResult<BTreeMap<String, Tensor>> {
    let path = folder.join("whole.safetensors");
    convert_to_file(&ModelFiles::folder(&golden("sd15"))?, &path, None, Existing::Stays)?;
    Ok(candle_core::safetensors::load(path, &Device::Cpu)?.into_iter().collect())
}

fn build(model: Model) -> tweedie::Result<LatentDiffusion> {
    LatentDiffusion::builder().model(model).device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()
}

fn message_of(bytes: &[u8], config: Option<PathBuf>) -> TestResult<String> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.ckpt");
    std::fs::write(&path, bytes)?;
    match build(Model::File { path, config }) {
        Ok(_) => Err("it was loaded".into()),
        Err(error) => {
            let message = error.to_string().replace(&folder.path().display().to_string(), "DIR");
            println!("{message}\n");
            Ok(message)
        }
    }
}

fn refused(bytes: &[u8], parts: &[&str]) -> TestResult {
    let message = message_of(bytes, None)?;
    assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} are not all in: {message}");
    Ok(())
}

#[test]
fn what_is_no_checkpoint_says_what_it_is() -> TestResult {
    refused(b"", &["is empty"])?;
    refused(b"<!DOCTYPE html><html>", &["a web page", "get it again"])?;
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:00", &["Git LFS pointer", "git lfs pull"])?;
    refused(b"{\"weight_map\": {}}", &["is a JSON file, not weights"])?;
    refused(b"{\"a1b2\":{\"x\": 1}}", &["is a JSON file, not weights"])?;
    refused(b"notes on the model\n", &["is a text, not weights"])?;
    refused(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &["is a picture, not weights"])?;
    let followed = [&safetensors(&[("x", &[2])])?[..], b"more"].concat();
    refused(&followed, &["and 4 bytes follow"])?;
    refused(b"GGUF\x03\0\0\0", &["GGUF file", "ends within its header", "get it again"])?;
    refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", &["ends in the middle", "get it again"])?;
    refused(b"\x80\x02K\x01.", &["a pickle that PyTorch did not write", "save it again"])?;
    let mut tar = vec![0; 512];
    tar[..7].copy_from_slice(b"storage");
    tar[257..262].copy_from_slice(b"ustar");
    refused(&tar, &["tar archive", "save it again"])?;
    refused(&zip(&[("readme.txt", b"hello")]), &["without a data.pkl"])
}

#[test]
fn files_of_other_kinds_say_where_they_belong() -> TestResult {
    let other = |name: &str, parts: &[&str]| refused(&safetensors(&[(name, &[2, 2])])?, parts);
    other("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &["is a LoRA", "`lora`"])?;
    other("unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight", &["is a LoRA", "`lora`"])?;
    other("controlnet_cond_embedding.conv_in.weight", &["is a ControlNet", "`control`"])?;
    other("input_hint_block.0.weight", &["is a ControlNet", "`control`"])?;
    other("adapter.body.0.resnets.0.block1.weight", &["is a T2I-Adapter", "`control`"])?;
    other("decoder.layers.2.conv.0.weight", &["a tiny autoencoder alone", "`preview_vae`"])?;
    other("emb_params", &["is an embedding", "`embedding`"])?;
    other("decoder.up.0.block.0.conv1.weight", &["an autoencoder alone", "`vae`"])?;
    other("down_blocks.0.resnets.0.conv1.weight", &["UNet of a diffusers folder alone", "give the folder"])?;
    other(
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        &["is Stable Diffusion 3", "1.x, 2.x or XL"],
    )?;
    other("double_blocks.0.img_attn.qkv.weight", &["is Flux", "1.x, 2.x or XL"])?;
    other("something", &["of no known kind", "1 tensors: something"])
}

/// A header of 896 or 19280 bytes has a length that begins as pickles or zip files do.
#[test]
fn a_length_that_looks_like_another_form_is_a_length() -> TestResult {
    let folder = tempfile::tempdir()?;
    for length in [0x0280u64, 0x0380, 0x4b50] {
        let json = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(8 + length as usize, b' ');
        bytes.extend(1f32.to_le_bytes());
        std::fs::write(folder.path().join("x"), bytes)?;
        let file = TensorFile::open(&ModelFiles::folder(folder.path())?, "x")?;
        assert_eq!(file.tensors()[0].name, "x", "{length}");
    }
    Ok(())
}

#[test]
fn families_are_told_by_their_shapes() -> TestResult {
    let file = |channels: usize, inputs: usize, width: usize, more: &[(&'static str, &'static [usize])]| {
        let (first, text) = ([channels, inputs, 3, 3], [channels, width]);
        let mut tensors: Vec<(&str, &[usize])> = vec![
            ("model.diffusion_model.input_blocks.0.0.weight", &first),
            ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &text),
        ];
        tensors.extend(more);
        safetensors(&tensors)
    };
    let family = |bytes: TestResult<Vec<u8>>| -> TestResult<String> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("x.safetensors"), bytes?)?;
        let file = SingleFile::open(&folder.path().join("x.safetensors"))?;
        Ok(Families::built_in().detect_file(file.file())?.name())
    };
    assert_eq!(family(file(320, 4, 768, &[]))?, "Stable Diffusion 1.x");
    assert_eq!(family(file(320, 9, 768, &[]))?, "Stable Diffusion 1.x, inpainting");
    assert_eq!(family(file(320, 4, 1024, &[]))?, "Stable Diffusion 2.x, predicts v");
    assert_eq!(family(file(320, 9, 1024, &[]))?, "Stable Diffusion 2.x, inpainting");
    // The two kinds of 2.x are told apart by how far the values of one bias spread, as far as they are.
    let spread = |width: f32| -> TestResult<Vec<u8>> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in [("input_blocks.0.0", &[320, 4, 3, 3][..]), ("x.attn2.to_k", &[320, 1024])] {
            let name = format!("model.diffusion_model.{name}.weight");
            tensors.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
        }
        // Values of +-width around 3 have that standard deviation.
        let values: Vec<f32> = (0..320).map(|i| if i % 2 == 0 { 3.0 + width } else { 3.0 - width }).collect();
        let name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
        tensors.insert(name.into(), Tensor::from_vec(values, 320, &Device::Cpu)?.to_dtype(DType::F16)?);
        Ok(safetensors::serialize(&tensors, None)?)
    };
    assert_eq!(family(spread(0.1))?, "Stable Diffusion 2.x, predicts v");
    assert_eq!(family(spread(0.08))?, "Stable Diffusion 2.x");
    assert_eq!(family(file(320, 4, 2048, &[]))?, "Stable Diffusion XL");
    assert_eq!(family(file(320, 9, 2048, &[]))?, "Stable Diffusion XL, inpainting");
    assert_eq!(family(file(320, 4, 2048, &[("v_pred", &[0]), ("ztsnr", &[0])]))?, "Stable Diffusion XL, predicts v");
    assert_eq!(family(file(384, 4, 1280, &[]))?, "Stable Diffusion XL refiner");
    refused(&file(24, 4, 32, &[])?, &["24 channels", "width 32", "`config`"])?;
    refused(&file(320, 8, 768, &[])?, &["input channels", "is 8", "`config`"])?;
    refused(&file(320, 4, 2048, &[("edm_mean", &[4])])?, &["Playground"])
}

#[test]
fn a_pickle_with_anything_else_than_tensors_is_an_error_and_nothing_is_run() -> TestResult {
    let folder = tempfile::tempdir()?;
    let witness = folder.path().join("was-here");
    let command = format!("cos\nsystem\n(X{}touch {}tR.", "\u{1a}\0\0\0", witness.display());
    refused(&with_pickle(command.as_bytes()), &["`os.system`", "nothing of it was run", "as safetensors"])?;
    assert!(!witness.exists());
    refused(&with_pickle(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."), &["`builtins.eval`", "nothing of it was run"])?;
    refused(&with_pickle(b"(S'ls'\nios\nsystem\n."), &["instruction 0x53", "nothing of it was run"])?;
    refused(&with_pickle(b"(ios\nsystem\n."), &["instruction 0x69", "nothing of it was run"])?;
    refused(&with_pickle(b"}Rp."), &["more off its stack"])?;
    refused(&with_pickle(b"K\x01."), &["no dictionary of tensors"])?;
    refused(&with_pickle(b"\x80\x02}X\xff\xff\xff\xff"), &["ends in the middle"])?;
    // A tuple of tuples of tuples: neither building nor dropping it recurses.
    let deep = |count: usize| with_pickle(&[&b")"[..], &vec![0x85; count], b"."].concat());
    refused(&deep(1 << 14), &["no dictionary of tensors"])?;
    // More of them would take many times the memory of their bytes.
    refused(&deep(1 << 20), &["its pickle has 1048578 bytes and builds more than"])
}

#[test]
fn tensors_that_do_not_fit_their_values_are_refused() -> TestResult {
    let one = |shape: &[usize], strides: &[usize]| {
        let mut pickle = b"}".to_vec();
        text(&mut pickle, "w");
        tensor(&mut pickle, "0", shape, strides);
        pickle.extend(b"s.");
        with_pickle(&pickle)
    };
    refused(&one(&[2, 3], &[3, 2]), &["strides [3, 2]", "only 6 values"])?;
    refused(&one(&[2, 3], &[1]), &["the strides [1]"])?;
    refused(&one(&[2, 4], &[4, 1]), &["should have 8 values and has 24 bytes"])?;
    refused(&one(&[1 << 31, 1 << 31, 1 << 31], &[1, 1, 1]), &["tensor w"])?;
    refused(&one(&[0, 1 << 30, 1 << 30, 1 << 30], &[1, 1, 1, 1]), &["tensor w", "which no tensor has"])?;
    let mut compressed = one(&[2, 3], &[3, 1]);
    let directory = compressed.windows(4).position(|w| w == b"PK\x01\x02").ok_or("no directory")?;
    compressed[directory + 10] = 8;
    refused(&compressed, &["compressed or encrypted"])?;
    let truncated = one(&[2, 3], &[3, 1]);
    refused(&truncated[..truncated.len() - 30], &["truncated, get it again"])
}

#[test]
fn a_checkpoint_of_pytorch_has_the_tensors_that_went_in() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tensors = whole(folder.path())?;
    std::fs::write(folder.path().join("x.ckpt"), checkpoint(&tensors)?)?;
    let file = TensorFile::open(&ModelFiles::folder(folder.path())?, "x.ckpt")?;
    assert!(matches!(&file, TensorFile::Torch(file) if file.global_step() == Some(7)));
    assert_eq!(file.tensors().len(), tensors.len());
    for stored in file.tensors() {
        let read = file.read(&stored, DType::F32, &Device::Cpu)?.ok_or("not finite")?;
        let bits = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        assert_eq!(bits(&read)?, bits(&tensors[&stored.name])?, "{}", stored.name);
    }
    build(Model::File { path: folder.path().join("x.ckpt"), config: Some(golden("sd15")) })?;
    Ok(())
}

/// Folders from before there was safetensors.
#[test]
fn a_folder_of_pickles_is_a_model() -> TestResult {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    copy(&golden("sd15"), &model)?;
    for (component, from, to) in [
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("text_encoder", "model", "pytorch_model"),
    ] {
        let from = model.join(component).join(format!("{from}.safetensors"));
        let tensors = candle_core::safetensors::load(&from, &Device::Cpu)?.into_iter().collect();
        std::fs::write(model.join(component).join(format!("{to}.bin")), checkpoint(&tensors)?)?;
        std::fs::remove_file(from)?;
    }
    build(Model::Folder(model))?;
    Ok(())
}

#[test]
fn what_does_not_fit_is_named_as_the_file_has_it() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tensors = whole(folder.path())?;
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>) -> TestResult, parts: &[&str]| -> TestResult {
        let mut changed = tensors.clone();
        change(&mut changed)?;
        let message = message_of(&safetensors::serialize(&changed, None)?, Some(golden("sd15")))?;
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} are not all in: {message}");
        Ok(())
    };
    const CONV: &str = "model.diffusion_model.middle_block.0.in_layers.2.weight";
    let missing = |tensors: &mut BTreeMap<String, Tensor>| {
        tensors.remove(CONV);
        Ok(())
    };
    refused(&missing, &["unet", "1 tensor missing", CONV])?;
    let unexpected = |tensors: &mut BTreeMap<String, Tensor>| {
        let one = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        tensors.insert("first_stage_model.decoder.mid.block_3.conv1.weight".into(), one);
        Ok(())
    };
    refused(&unexpected, &["vae", "1 tensor unexpected", "first_stage_model.decoder.mid.block_3.conv1.weight"])?;
    let mis_shaped = |tensors: &mut BTreeMap<String, Tensor>| {
        let one = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
        tensors.insert(CONV.into(), one);
        Ok(())
    };
    refused(&mis_shaped, &["unet", "of another shape", CONV, "[2, 2]"])?;
    let not_finite = |tensors: &mut BTreeMap<String, Tensor>| {
        let broken = (&tensors[CONV] / 0.0)?;
        tensors.insert(CONV.into(), broken);
        Ok(())
    };
    refused(&not_finite, &["unet", "NaN or infinite", CONV])?;
    let without_text = |tensors: &mut BTreeMap<String, Tensor>| {
        tensors.retain(|name, _| !name.starts_with("cond_stage_model."));
        Ok(())
    };
    refused(&without_text, &["text_encoder", "missing", "cond_stage_model."])
}

/// What f16 cannot hold would become infinite.
#[test]
fn values_beyond_f16_are_refused_in_f16() -> TestResult {
    let folder = tempfile::tempdir()?;
    let files = ModelFiles::folder(folder.path())?;
    for (largest, dtype, fits) in [
        (65_504f32, DType::F32, true),
        (65_536.0, DType::F32, false),
        (1e5, DType::F64, false),
        (1e5, DType::BF16, false),
    ] {
        let tensor = Tensor::new(&[1.0, -largest], &Device::Cpu)?.to_dtype(dtype)?;
        candle_core::safetensors::save(
            &BTreeMap::from([("x", tensor)]).into_iter().collect(),
            folder.path().join("x"),
        )?;
        let file = TensorFile::open(&files, "x")?;
        let read = |dtype| file.read(&file.tensors()[0], dtype, &Device::Cpu);
        assert!(read(DType::F32)?.is_some() && read(DType::BF16)?.is_some());
        match read(DType::F16) {
            Ok(read) => assert!(fits && read.is_some(), "{largest}"),
            Err(error) => assert!(!fits && error.to_string().contains("65504"), "{largest}: {error}"),
        }
    }
    Ok(())
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end.max(1)
    }
}

/// Another program cuts the file after it was opened and found whole. A look at what is gone of a mapped file would end the process.
#[test]
fn a_file_that_becomes_shorter_while_it_is_read_is_an_error() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (name, path) = ("x", folder.path().join("x"));
    let large: BTreeMap<String, Tensor> = [DType::F32, DType::F16, DType::BF16, DType::F64]
        .into_iter()
        .map(|dtype| Ok((format!("{dtype:?}").to_lowercase(), Tensor::zeros((300, 1000), dtype, &Device::Cpu)?)))
        .collect::<TestResult<_>>()?;
    let singles = large.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F32)?)));
    let torch = checkpoint(&singles.collect::<TestResult<_>>()?)?;
    for bytes in [safetensors::serialize(&large, None)?, torch] {
        std::fs::write(&path, &bytes)?;
        let file = TensorFile::open(&ModelFiles::folder(folder.path())?, name)?;
        std::fs::File::options().write(true).open(&path)?.set_len(5000)?;
        let tensors = file.tensors();
        assert_eq!(tensors.len(), 4);
        for stored in tensors {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let Err(error) = file.read(&stored, dtype, &Device::Cpu) else {
                    return Err(format!("{} in {dtype:?}", stored.name).into());
                };
                let message = error.to_string();
                assert!(message.contains(&format!("{}", path.display())) && message.contains("shorter"), "{message}");
                assert_eq!(error.kind(), ErrorKind::Model);
            }
        }
    }
    Ok(())
}

/// Some bytes of a part changed, or the end cut off.
fn mutated(bytes: &[u8], part: std::ops::Range<usize>, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = part.start + numbers.below(part.len());
        bytes[at] = match numbers.below(4) {
            0 => 0,
            1 => 0xff,
            2 => bytes[at] ^ (1 << numbers.below(8)),
            _ => numbers.below(256) as u8,
        };
    }
    if numbers.below(4) == 0 {
        let length = numbers.below(bytes.len());
        bytes.truncate(length);
    }
    bytes
}

/// Opens a file and reads all that it promises; either works or is an error, nothing else.
fn open_and_read(folder: &Path, bytes: &[u8]) -> TestResult<bool> {
    std::fs::write(folder.join("x"), bytes)?;
    let Ok(file) = TensorFile::open(&ModelFiles::folder(folder)?, "x") else { return Ok(false) };
    for stored in file.tensors() {
        let _ = file.read(&stored, DType::F32, &Device::Cpu);
    }
    Ok(true)
}

#[test]
fn mutated_and_truncated_headers_and_pickles_end_in_tensors_or_errors() -> TestResult {
    let folder = tempfile::tempdir()?;
    let small: BTreeMap<String, Tensor> = (0..6)
        .map(|i| Ok((format!("layer.{i}.weight"), Tensor::zeros((i + 1, 3), DType::F32, &Device::Cpu)?)))
        .collect::<TestResult<_>>()?;
    let safe = safetensors::serialize(&small, None)?;
    let torch = checkpoint(&small)?;
    let directory = torch.windows(4).position(|w| w == b"PK\x01\x02").ok_or("no directory")?;
    let pickle_end = torch.windows(14).position(|w| w == b"archive/data/0").ok_or("no data")?;
    let header = 8 + u64::from_le_bytes(safe[..8].try_into()?) as usize;
    let old = std::fs::read(golden("../adapters/lokr-whole/lora.0.old.pt"))?;
    let old_end = old.windows(4).rposition(|w| w == b"]q\x00(").ok_or("no list of values")?;
    let gguf = std::fs::read(golden("../gguf/tensors.gguf"))?;
    let gguf_end = gguf.windows(4).rposition(|w| w == b"half").ok_or("no tensor")? + 48;
    let mut numbers = Numbers(1);
    for (name, bytes, part) in [
        ("safetensors", &safe, 0..header),
        ("directory", &torch, directory..torch.len()),
        ("pickle", &torch, 0..pickle_end),
        ("pickles in a row", &old, 0..old_end),
        ("GGUF", &gguf, 0..gguf_end),
    ] {
        assert!(open_and_read(folder.path(), bytes)?, "{name}, whole");
        let mut opened = 0;
        for _ in 0..3000 {
            opened += usize::from(open_and_read(folder.path(), &mutated(bytes, part.clone(), &mut numbers))?);
        }
        // Some mutations are harmless, most are not: the test reaches both.
        assert!((1..2900).contains(&opened), "{name}: {opened} of 3000 were opened");
    }
    Ok(())
}

/// A folder's configurations and index, byte by byte: a pipeline or an error, and never a file outside the folder.
#[test]
fn mutated_configurations_end_in_pipelines_or_errors() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tensors = whole(folder.path())?;
    let model = folder.path().join("model");
    copy(&golden("sd15"), &model)?;
    // The weights come from one file, so that only small files are copied.
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, safetensors::serialize(&tensors, None)?)?;
    let mut numbers = Numbers(2);
    let (mut built, mut tried) = (0, 0);
    for name in [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "model_index.json",
    ] {
        let original = std::fs::read(model.join(name))?;
        for _ in 0..60 {
            std::fs::write(model.join(name), mutated(&original, 0..original.len(), &mut numbers))?;
            let result = build(Model::File { path: path.clone(), config: Some(model.clone()) });
            built += usize::from(result.is_ok());
            tried += 1;
        }
        std::fs::write(model.join(name), original)?;
    }
    assert!((1..tried).contains(&built), "{built} of {tried}");
    Ok(())
}

#[test]
fn mutated_indexes_end_in_checkpoints_or_errors() -> TestResult {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    copy(&golden("sd15"), &model)?;
    let unet = model.join("unet");
    std::fs::rename(unet.join("diffusion_pytorch_model.safetensors"), unet.join("part-1.safetensors"))?;
    let index = r#"{"metadata": {}, "weight_map": {"conv_in.weight": "part-1.safetensors"}}"#.as_bytes();
    let path = unet.join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(&path, index)?;
    build(Model::Folder(model.clone()))?;
    let mut numbers = Numbers(3);
    let mut refused = 0;
    for _ in 0..200 {
        std::fs::write(&path, mutated(index, 0..index.len(), &mut numbers))?;
        refused += usize::from(build(Model::Folder(model.clone())).is_err());
    }
    assert!((50..200).contains(&refused), "{refused} of 200 were refused");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> TestResult {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?
        } else {
            std::fs::write(target, std::fs::read(entry.path())?)?
        }
    }
    Ok(())
}
