//! The forms in which files keep weights: floats of eight bits, tensors out of order, dictionaries within dictionaries, shards,
//! and models whose one file says more than its configurations.

mod torch_files;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use torch_files::{checkpoint, integers, tensor, text, view, zip};
use tweedie::checkpoints::{Checkpoint, FileLayout, Held, ModelFiles, Precision, SingleFile, TensorFile};
use tweedie::families::{Family, SD1, convert_to_file, convert_to_folder};
use tweedie::files::Existing;
use tweedie::layers::WeightSource;
use tweedie_pipelines::{DTypeChoice, DeviceChoice, LatentDiffusion, Model};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn copy(from: &Path, to: &Path) -> TestResult {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target)?,
            false => std::fs::write(target, std::fs::read(entry.path())?)?,
        }
    }
    Ok(())
}

fn build(model: Model) -> tweedie::Result<LatentDiffusion> {
    LatentDiffusion::builder().model(model).device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()
}

fn load(path: &Path) -> TestResult<BTreeMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(path, &Device::Cpu)?.into_iter().collect())
}

/// The tensors of a model in one file.
fn whole(model: &str, folder: &Path) -> TestResult<BTreeMap<String, Tensor>> {
    let path = folder.join("whole.safetensors");
    convert_to_file(&ModelFiles::folder(&golden(model))?, &path, None, Existing::Stays)?;
    load(&path)
}

/// All tensors of a file, in f32.
fn read(folder: &Path, bytes: &[u8]) -> TestResult<BTreeMap<String, Vec<f32>>> {
    std::fs::write(folder.join("x"), bytes)?;
    let file = TensorFile::open(&ModelFiles::folder(folder)?, "x")?;
    let values = file.tensors().into_iter().map(|stored| {
        let values = file.read(&stored, DType::F32, &Device::Cpu)?.ok_or("not finite")?;
        assert_eq!(values.dims(), stored.shape);
        Ok((stored.name, values.flatten_all()?.to_vec1()?))
    });
    values.collect()
}

fn numbers(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

#[test]
fn values_out_of_order_are_put_in_order() -> TestResult {
    let folder = tempfile::tempdir()?;
    // Channels last, as PyTorch lays out convolutions for speed; a matrix transposed; a part of a larger one; a dimension of one.
    let cases: [(&[usize], &[usize], u8, usize); 6] = [
        (&[2, 3, 4, 5], &[60, 1, 15, 3], 0, 120),
        (&[3, 2], &[1, 3], 0, 6),
        (&[2, 2], &[6, 2], 1, 12),
        (&[4], &[3], 2, 12),
        (&[1, 3], &[17, 2], 0, 6),
        (&[2, 3], &[3, 1], 4, 12),
    ];
    for (shape, strides, offset, count) in cases {
        let mut pickle = b"}".to_vec();
        text(&mut pickle, "w");
        view(&mut pickle, "0", count, offset, (shape, strides));
        pickle.extend(b"s.");
        let file = zip(&[("archive/data.pkl", &pickle), ("archive/data/0", &numbers(count))]);
        let values = &read(folder.path(), &file)?["w"];
        for (i, value) in values.iter().enumerate() {
            // The indices of the element, then where the strides lead.
            let (mut rest, mut place) = (i, usize::from(offset));
            for (dimension, stride) in shape.iter().zip(strides).rev() {
                place += rest % dimension * stride;
                rest /= dimension;
            }
            assert_eq!(*value, place as f32, "{shape:?} {strides:?}");
        }
    }
    Ok(())
}

/// What trainers leave beside weights, and where they leave the weights.
#[test]
fn weights_are_found_in_dictionaries_of_other_things() -> TestResult {
    let folder = tempfile::tempdir()?;
    let pickle_of = |before: &[u8], keys: &[&str], name: &str| {
        let mut pickle = b"}(".to_vec();
        pickle.extend(before);
        for key in keys {
            text(&mut pickle, key);
            pickle.extend(b"}(");
        }
        text(&mut pickle, name);
        tensor(&mut pickle, "0", &[2, 3], &[3, 1]);
        pickle.extend(keys.iter().map(|_| b'u'));
        pickle.extend(b"u.");
        pickle
    };
    let read =
        |pickle: &[u8]| read(folder.path(), &zip(&[("archive/data.pkl", pickle), ("archive/data/0", &numbers(6))]));
    let expected: Vec<f32> = (0..6).map(|i| i as f32).collect();
    for keys in
        [&[][..], &["state_dict"], &["model"], &["module"], &["params_ema"], &["anything"], &["a", "state_dict"]]
    {
        assert_eq!(read(&pickle_of(b"", keys, "w"))?, BTreeMap::from([("w".into(), expected.clone())]), "{keys:?}");
    }
    // Parallel training.
    assert_eq!(read(&pickle_of(b"", &["model"], "module.w"))?, BTreeMap::from([("w".into(), expected.clone())]));
    // A shape, an element type, a device, an optimizer's state under numbers.
    let mut beside = Vec::new();
    text(&mut beside, "size");
    beside.extend(b"ctorch\nSize\n(");
    integers(&mut beside, &[1]);
    beside.extend(b"tR");
    text(&mut beside, "dtype");
    beside.extend(b"ctorch\nfloat16\n");
    text(&mut beside, "device");
    beside.extend(b"ctorch\ndevice\n(");
    text(&mut beside, "cpu");
    beside.extend(b"tR");
    text(&mut beside, "optimizer");
    beside.extend(b"}K\0");
    tensor(&mut beside, "0", &[2, 3], &[3, 1]);
    beside.push(b's');
    assert_eq!(read(&pickle_of(&beside, &["weights"], "w"))?, BTreeMap::from([("w".into(), expected.clone())]));
    // The moving average comes before what it is one of.
    let mut both = b"}(".to_vec();
    for key in ["params", "params_ema"] {
        text(&mut both, key);
        both.push(b'}');
        text(&mut both, key);
        tensor(&mut both, "0", &[2, 3], &[3, 1]);
        both.push(b's');
    }
    both.extend(b"u.");
    assert_eq!(read(&both)?, BTreeMap::from([("params_ema".into(), expected)]));
    Ok(())
}

/// A small pickle cannot build what it copies a thousand times.
#[test]
fn what_a_pickle_builds_is_bounded_by_its_length() -> TestResult {
    let folder = tempfile::tempdir()?;
    let mut pickle = b"\x80\x02".to_vec();
    text(&mut pickle, "k");
    text(&mut pickle, "v");
    pickle.extend(b"\x86q\0]q\x01(");
    pickle.extend(b"h\0".repeat(100_000));
    pickle.extend(b"e\x85q\x02ccollections\nOrderedDict\nq\x03");
    pickle.extend(b"h\x03h\x02R0".repeat(1000));
    pickle.extend(b"}.");
    let error = read(folder.path(), &zip(&[("archive/data.pkl", &pickle)])).err().ok_or("it was read")?;
    assert!(error.to_string().contains("which none of weights does"), "{error}");
    Ok(())
}

/// A float of eight bits by its definition: sign, exponent, mantissa.
fn eight_bits(bits: u8, mantissa_bits: u32) -> f32 {
    let exponent_bits = 7 - mantissa_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let (mantissa, exponent) = (bits & ((1 << mantissa_bits) - 1), i32::from((bits & 0x7f) >> mantissa_bits));
    let fraction = f32::from(mantissa) / f32::from(1u8 << mantissa_bits);
    let size =
        if exponent == 0 { fraction * 2f32.powi(1 - bias) } else { (1.0 + fraction) * 2f32.powi(exponent - bias) };
    if bits & 0x80 == 0 { size } else { -size }
}

/// A folder with these tensors as its UNet's.
fn unet(folder: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> TestResult<ModelFiles> {
    let views =
        tensors.iter().map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes)?)));
    let bytes = safetensors::serialize(views.collect::<TestResult<Vec<_>>>()?, None)?;
    std::fs::create_dir_all(folder.join("unet"))?;
    std::fs::write(folder.join("unet/diffusion_pytorch_model.safetensors"), bytes)?;
    Ok(ModelFiles::folder(folder)?)
}

#[test]
fn floats_of_eight_bits_are_widened_and_scaled() -> TestResult {
    let folder = tempfile::tempdir()?;
    let bits: Vec<u8> = (0..24u8).map(|i| i * 10).collect();
    let float = |value: f32| value.to_le_bytes().to_vec();
    let rows: Vec<u8> = [0.5f32, 3.0, 0.1].into_iter().flat_map(f32::to_le_bytes).collect();
    let files = unet(
        folder.path(),
        &[
            ("plain.weight", Dtype::F8_E4M3, &[3, 8], bits.clone()),
            ("other.weight", Dtype::F8_E5M2, &[3, 8], bits.clone()),
            ("scaled.weight", Dtype::F8_E4M3, &[3, 8], bits.clone()),
            ("scaled.scale_weight", Dtype::F32, &[], float(0.3)),
            ("scaled.scale_input", Dtype::F32, &[], float(7.0)),
            ("rows.weight", Dtype::F8_E4M3, &[3, 8], bits.clone()),
            ("rows.weight_scale", Dtype::F32, &[3, 1], rows),
            ("rows.input_scale", Dtype::F32, &[1], float(7.0)),
            ("scaled_fp8", Dtype::F8_E4M3, &[0], Vec::new()),
        ],
    )?;
    let open = |dtype| Checkpoint::open(&files, "unet", Precision::Full, dtype, &Device::Cpu);
    let expected = |name: &str| -> Vec<f32> {
        let scales = match name {
            "scaled.weight" => [0.3f32; 3],
            "rows.weight" => [0.5, 3.0, 0.1],
            _ => [1.0; 3],
        };
        let mantissa = if name == "other.weight" { 2 } else { 3 };
        bits.iter().enumerate().map(|(i, &bits)| eight_bits(bits, mantissa) * scales[i / 8]).collect()
    };
    let whole = open(DType::F32)?;
    let halves = open(DType::F32)?.held(Held::AsStored);
    let bf16 = open(DType::BF16)?;
    for (name, half) in
        [("plain.weight", true), ("other.weight", true), ("scaled.weight", false), ("rows.weight", false)]
    {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
        assert_eq!(values(&whole.tensor(name, &[3, 8])?)?, expected(name), "{name}");
        // What is exact in half of the memory is kept in it.
        let kept = halves.tensor(name, &[3, 8])?;
        assert_eq!((kept.dtype(), values(&kept)?), (if half { DType::F16 } else { DType::F32 }, expected(name)));
        let rounded = Tensor::new(expected(name), &Device::Cpu)?.to_dtype(DType::BF16)?;
        assert_eq!(values(&bf16.tensor(name, &[3, 8])?)?, values(&rounded)?);
    }
    // Scales are a part of their weights, and none is left over.
    let stored: Vec<_> = whole.stored().map(|stored| (stored.name, stored.dtype)).collect();
    let named = |name: &str, dtype: Dtype| (name.to_owned(), dtype.into());
    assert_eq!(
        stored,
        [
            named("other.weight", Dtype::F8_E5M2),
            named("plain.weight", Dtype::F8_E4M3),
            named("rows.weight", Dtype::F32),
            named("scaled.weight", Dtype::F32)
        ]
    );
    whole.finish(&[])?;
    // NaN is NaN here too.
    let files = unet(&folder.path().join("nan"), &[("w.weight", Dtype::F8_E4M3, &[2], vec![1, 0xff])])
        .map_err(|e| e.to_string());
    assert!(files.is_ok());
    let nan = Checkpoint::open(&files?, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
    nan.tensor("w.weight", &[2])?;
    assert!(nan.finish(&[]).is_err_and(|error| error.to_string().contains("NaN or infinite values (w.weight)")));
    Ok(())
}

/// A whole model in eight bits becomes one in sixteen, value by value.
#[test]
fn a_model_of_eight_bits_is_converted_to_wider_ones() -> TestResult {
    let folder = tempfile::tempdir()?;
    let original = whole("sd15", folder.path())?;
    let eight: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = (original.iter())
        .map(|(name, tensor)| {
            let narrow = name.starts_with("model.diffusion_model.") && tensor.dims().len() > 1;
            let (dtype, bytes) = match narrow {
                // Any numbers, from -0.9 to 0.9.
                true => (
                    Dtype::F8_E4M3,
                    (0..tensor.elem_count()).map(|i| (i * 37 % 0x37) as u8 | (i % 2 * 0x80) as u8).collect(),
                ),
                false => {
                    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                    (Dtype::F32, values.into_iter().flat_map(f32::to_le_bytes).collect())
                }
            };
            Ok((name.as_str(), (dtype, tensor.dims().to_vec(), bytes)))
        })
        .collect::<TestResult<_>>()?;
    let views =
        eight.iter().map(|(name, (dtype, shape, bytes))| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)));
    let path = folder.path().join("eight.safetensors");
    std::fs::write(&path, safetensors::serialize(views.collect::<TestResult<Vec<_>>>()?, None)?)?;
    let layout = SD1.file_layout().ok_or("no layout")?;
    let configs = ModelFiles::folder(&golden("sd15"))?;
    let files = ModelFiles::Single {
        configs: configs.into(),
        weights: SingleFile::open(&path)?,
        layout,
        scheduler: Default::default(),
    };
    let output = folder.path().join("model");
    convert_to_folder(&files, &output, None, Existing::Stays)?;
    let again = folder.path().join("again.safetensors");
    convert_to_file(&ModelFiles::folder(&output)?, &again, None, Existing::Stays)?;
    for (name, tensor) in load(&again)? {
        let (dtype, _, bytes) = &eight[name.as_str()];
        if *dtype == Dtype::F8_E4M3 {
            assert_eq!(tensor.dtype(), DType::F16, "{name}");
            let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            assert!(values.iter().zip(bytes).all(|(value, &bits)| *value == eight_bits(bits, 3)), "{name}");
        }
    }
    build(Model::File { path, config: Some(golden("sd15")) })?;
    Ok(())
}

#[test]
fn a_folder_may_have_its_pickle_in_parts_or_only_weights_without_an_average() -> TestResult {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    copy(&golden("sd15"), &model)?;
    let unet = model.join("unet");
    let stored = unet.join("diffusion_pytorch_model.safetensors");
    let tensors: Vec<_> = load(&stored)?.into_iter().collect();
    let mut map = serde_json::Map::new();
    for (part, tensors) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let name = format!("diffusion_pytorch_model-{part}-of-2.bin");
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), Value::from(name.clone()))));
        std::fs::write(unet.join(name), checkpoint(&tensors.iter().cloned().collect())?)?;
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    std::fs::write(unet.join("diffusion_pytorch_model.bin.index.json"), index)?;
    std::fs::rename(&stored, folder.path().join("moved"))?;
    build(Model::Folder(model.clone()))?;
    std::fs::remove_file(unet.join("diffusion_pytorch_model.bin.index.json"))?;
    assert!(build(Model::Folder(model.clone())).is_err());
    std::fs::rename(folder.path().join("moved"), unet.join("diffusion_pytorch_model.non_ema.safetensors"))?;
    build(Model::Folder(model))?;
    Ok(())
}

/// The configurations are those of the model that it was distilled from.
#[test]
fn a_latent_consistency_model_is_known_by_its_one_file() -> TestResult {
    let folder = tempfile::tempdir()?;
    let configs = folder.path().join("configs");
    copy(&golden("lcm"), &configs)?;
    let edit = |name: &str, change: &dyn Fn(&mut Value)| -> TestResult {
        let mut fields: Value = serde_json::from_slice(&std::fs::read(configs.join(name))?)?;
        change(&mut fields);
        Ok(std::fs::write(configs.join(name), fields.to_string())?)
    };
    edit("unet/config.json", &|fields| fields["time_cond_proj_dim"] = Value::Null)?;
    edit("scheduler/scheduler_config.json", &|fields| fields["_class_name"] = "PNDMScheduler".into())?;
    let tensors = whole("lcm", folder.path())?;
    const NAME: &str = "model.diffusion_model.time_embed.cond_proj.weight";
    let projection = tensors.get(NAME).ok_or("no projection")?.clone();
    // As the other names of the file are, and as diffusers' script leaves it.
    for name in [NAME, "model.diffusion_model.time_embedding.cond_proj.weight"] {
        let mut tensors = tensors.clone();
        tensors.remove(NAME);
        tensors.insert(name.into(), projection.clone());
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, safetensors::serialize(&tensors, None)?)?;
        let layout: &dyn FileLayout = SD1.file_layout().ok_or("no layout")?;
        let weights = SingleFile::open(&path)?;
        let files = ModelFiles::Single {
            configs: ModelFiles::folder(&configs)?.into(),
            weights,
            layout,
            scheduler: Default::default(),
        };
        assert!(SD1.architecture(&files)?.network_facts().takes_guidance);
        assert_eq!(files.config("scheduler", "scheduler_config.json")?.class_name(), Some("LCMScheduler"));
        build(Model::File { path, config: Some(configs.clone()) })?;
        // A folder made of it says so itself.
        let output = folder.path().join("converted");
        convert_to_folder(&files, &output, None, Existing::GivesWay)?;
        let folder_files = ModelFiles::folder(&output)?;
        assert!(SD1.architecture(&folder_files)?.network_facts().takes_guidance);
        build(Model::Folder(output))?;
    }
    // Another model's is left alone.
    let tensors: BTreeMap<_, _> = tensors.into_iter().filter(|(name, _)| name != NAME).collect();
    let path = folder.path().join("plain.safetensors");
    std::fs::write(&path, safetensors::serialize(&tensors, None)?)?;
    let layout: &dyn FileLayout = SD1.file_layout().ok_or("no layout")?;
    let files = ModelFiles::Single {
        configs: ModelFiles::folder(&configs)?.into(),
        weights: SingleFile::open(&path)?,
        layout,
        scheduler: Default::default(),
    };
    assert!(!SD1.architecture(&files)?.network_facts().takes_guidance);
    Ok(())
}

#[test]
fn an_autoencoder_alone_may_have_a_prefix() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tensors = load(&golden("sd15").join("vae/diffusion_pytorch_model.safetensors"))?;
    for prefix in ["", "vae.", "first_stage_model."] {
        let named: BTreeMap<_, _> =
            tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        let path = folder.path().join("vae.safetensors");
        std::fs::write(&path, safetensors::serialize(&named, None)?)?;
        let vae = Model::File { path, config: Some(golden("sd15")) };
        let builder = LatentDiffusion::builder().model(Model::Folder(golden("sd15"))).vae(Some(vae));
        builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()?;
    }
    Ok(())
}

/// A configuration of a few bytes asks for thousands of layers, or wide ones, of which the file has none.
#[test]
fn a_configuration_beyond_its_weights_is_refused_before_it_is_built() -> TestResult {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    copy(&golden("sd15"), &model)?;
    let original: Value = serde_json::from_slice(&std::fs::read(model.join("unet/config.json"))?)?;
    let refused = |change: &dyn Fn(&mut Value)| -> TestResult<String> {
        let mut fields = original.clone();
        change(&mut fields);
        std::fs::write(model.join("unet/config.json"), fields.to_string())?;
        Ok(build(Model::Folder(model.clone())).err().ok_or("it was built")?.to_string())
    };
    let blocks = |fields: &mut Value, count: usize, width: usize, layers: usize| {
        fields["block_out_channels"] = json!(vec![width; count]);
        fields["down_block_types"] = json!(vec!["CrossAttnDownBlock2D"; count]);
        fields["up_block_types"] = json!(vec!["CrossAttnUpBlock2D"; count]);
        fields["attention_head_dim"] = json!(8);
        fields["norm_num_groups"] = json!(8);
        fields["layers_per_block"] = json!(layers);
        fields["transformer_layers_per_block"] = json!(layers);
    };
    let deep = refused(&|fields| blocks(fields, 16, 24, 100))?;
    assert!(deep.contains("tensors missing") && deep.contains(" and more; the file does not belong"), "{deep}");
    let wide = refused(&|fields| blocks(fields, 2, 40_000, 2))?;
    assert!(wide.contains(" and more; the file does not belong"), "{wide}");
    let resolutions = refused(&|fields| blocks(fields, 30, 24, 1))?;
    assert!(resolutions.contains("block_out_channels") && resolutions.contains("16 resolutions"), "{resolutions}");
    std::fs::write(model.join("unet/config.json"), " ".repeat(20 << 20))?;
    let long = build(Model::Folder(model)).err().ok_or("it was built")?.to_string();
    assert!(long.contains("it has 20971520 bytes"), "{long}");
    Ok(())
}
