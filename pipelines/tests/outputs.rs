//! What the program writes: whose files give way to it and whose do not, and what a kill, a full disk or another process leaves.

mod tweedie;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;
use tweedie::{TestResult, Tweedie, copy_folder, golden};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

/// The golden model in `box/work/m`, with files of somebody's around it.
fn with_model() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    copy_folder(&golden().join("models/sd15"), &tweedie.path("box/work/m"))?;
    std::fs::create_dir(tweedie.path("box/work/notes"))?;
    for name in ["box/outside.txt", "box/work/notes/a.txt"] {
        std::fs::write(tweedie.path(name), "precious")?;
    }
    Ok(tweedie)
}

/// Every file below a folder with its bytes; of links, where they lead.
fn contents(folder: &Path) -> TestResult<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_symlink() {
            found.insert(name, std::fs::read_link(&path)?.to_string_lossy().into_owned().into_bytes());
        } else if path.is_dir() {
            found.extend(contents(&path)?.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, std::fs::read(&path)?);
        }
    }
    Ok(found)
}

/// `--force` gives nobody's files away: each of these is refused, and every byte stays.
#[test]
fn nothing_gives_way_to_a_model_but_a_model() -> TestResult {
    let tweedie = with_model()?;
    let at = |name: &str| tweedie.path("box/work").join(name);
    std::fs::write(at("thesis.safetensors"), "precious")?;
    std::fs::create_dir(at("empty"))?;
    copy_folder(&at("m"), &at("annotated"))?;
    std::fs::write(at("annotated/unet/notes.txt"), "precious")?;
    tweedie.run(&["model", "convert", "box/work/m", "box/work/whole.safetensors"])?.success()?;
    std::fs::create_dir(at("one"))?;
    std::fs::rename(at("whole.safetensors"), at("one/whole.safetensors"))?;
    #[cfg(unix)]
    for (target, name) in [("notes", "link"), ("thesis.safetensors", "link.safetensors"), ("m", "m-link")] {
        std::os::unix::fs::symlink(target, at(name))?;
    }
    let before = contents(&tweedie.path("box"))?;
    let mut cases = vec![
        ("m", ".", "holds what the model is read from"),
        ("m", "..", "holds what the model is read from"),
        ("m", "../work", "holds what the model is read from"),
        ("m", "m/", "is what the model is read from"),
        ("m", "m/unet", "lies in what the model is read from"),
        ("m", "m/new", "lies in what the model is read from"),
        ("m", "m/unet/new.safetensors", "lies in what the model is read from"),
        ("one/whole.safetensors", "one", "holds what the model is read from"),
        ("one/whole.safetensors", "one/whole.safetensors", "is what the model is read from"),
        ("m", "notes", "it holds a.txt"),
        ("m", "annotated", "it holds unet/notes.txt"),
        ("m", "empty", "a folder without a model"),
        ("m", "one", "it holds whole.safetensors"),
        ("m", "thesis.safetensors", "no model"),
        ("m", "notes/a.txt", "no folder"),
    ];
    if cfg!(unix) {
        cases.extend([
            ("m", "link", "a link"),
            ("m", "link.safetensors", "a link"),
            ("m", "m-link", "is what the model"),
        ]);
    }
    for (model, output, reason) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command.args(["model", "convert", model, output, "--force"]).current_dir(tweedie.path("box/work"));
        if model.ends_with(".safetensors") {
            command.args(["--config", "m"]);
        }
        let ended = command.output()?;
        let message = String::from_utf8(ended.stderr)?;
        assert!(ended.status.code() == Some(1) && message.contains(reason), "{output}: {message}");
        assert!(contents(&tweedie.path("box"))? == before, "{output} changed something");
    }
    Ok(())
}

/// What merely looks like the program's own unfinished work is not taken for it.
#[test]
fn what_ends_in_part_stays() -> TestResult {
    let tweedie = with_model()?;
    std::fs::create_dir(tweedie.path("out.part"))?;
    for name in ["out.part/mine.txt", "out.safetensors.part"] {
        std::fs::write(tweedie.path(name), "precious")?;
    }
    for output in ["out", "out.safetensors"] {
        tweedie.run(&["model", "convert", "box/work/m", output])?.success()?;
        tweedie.run(&["model", "convert", "box/work/m", output, "--force"])?.success()?;
    }
    for name in ["out.part/mine.txt", "out.safetensors.part"] {
        assert_eq!(std::fs::read_to_string(tweedie.path(name))?, "precious");
    }
    assert_eq!(tweedie.files()?, ["box", "out", "out.part", "out.safetensors", "out.safetensors.part"]);
    Ok(())
}

type Tensors = BTreeMap<String, candle_core::Tensor>;

/// Changes the tensors of one of the model's files.
fn change(tweedie: &Tweedie, file: &str, change: impl FnOnce(&mut Tensors) -> TestResult) -> TestResult {
    let path = tweedie.path("box/work/m").join(file);
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu)?.into_iter().collect();
    change(&mut tensors)?;
    Ok(std::fs::write(&path, safetensors::serialize(&tensors, None)?)?)
}

/// A model that could not be loaded is not converted either, in whichever direction, and nothing is left of the attempt.
#[test]
fn what_could_not_be_loaded_is_not_converted() -> TestResult {
    type Damage = fn(&mut Tensors) -> TestResult;
    let damages: [(&str, &str, Damage); 6] = [
        (UNET, "mid_block.attentions.0.proj_in.weight", |tensors| {
            let tensor = &tensors["mid_block.attentions.0.proj_in.weight"];
            let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
            values[3] = f32::NAN;
            let damaged = candle_core::Tensor::from_vec(values, tensor.dims(), tensor.device())?;
            tensors.insert("mid_block.attentions.0.proj_in.weight".into(), damaged);
            Ok(())
        }),
        (UNET, "conv_in.weight", |tensors| {
            let whole = tensors["conv_in.weight"].to_dtype(candle_core::DType::I64)?;
            tensors.insert("conv_in.weight".into(), whole);
            Ok(())
        }),
        (UNET, "conv_in.bias", |tensors| {
            let short = tensors["conv_in.bias"].narrow(0, 0, 3)?.contiguous()?;
            tensors.insert("conv_in.bias".into(), short);
            Ok(())
        }),
        (TEXT, "layers.0.self_attn.k_proj", |tensors| {
            tensors.retain(|name, _| !name.contains("layers.0.self_attn.k_proj"));
            Ok(())
        }),
        (TEXT, "final_layer_norm.weight", |tensors| {
            let again = (&tensors["text_model.final_layer_norm.weight"] * 2.0)?;
            tensors.insert("final_layer_norm.weight".into(), again);
            Ok(())
        }),
        ("vae/diffusion_pytorch_model.safetensors", "attentions.0.to_q.weight", |tensors| {
            let name = "decoder.mid_block.attentions.0.to_q.weight";
            let older = "decoder.mid_block.attentions.0.query.weight";
            let again = tensors[name].clone();
            tensors.insert(older.into(), again);
            Ok(())
        }),
    ];
    for (file, tensor, damage) in damages {
        let tweedie = with_model()?;
        change(&tweedie, file, damage)?;
        for output in ["out", "out.safetensors"] {
            tweedie.run(&["model", "convert", "box/work/m", output])?.fails(1, &["the weights of the", tensor])?;
        }
        assert_eq!(tweedie.files()?, ["box"], "{file}");
    }
    Ok(())
}

/// One has the name, whole; the other is told.
#[test]
fn of_two_at_once_one_wins_whole() -> TestResult {
    let tweedie = with_model()?;
    tweedie.run(&["model", "convert", "box/work/m", "alone"])?.success()?;
    tweedie.run(&["model", "convert", "box/work/m", "alone.safetensors"])?.success()?;
    for round in 0..4 {
        for ending in ["", ".safetensors"] {
            let output = format!("out-{round}{ending}");
            let arguments = ["model", "convert", "box/work/m", output.as_str()];
            let both = [tweedie.spawn(&arguments)?, tweedie.spawn(&arguments)?];
            let ended = both.map(Child::wait_with_output);
            let mut codes = Vec::new();
            for ended in ended {
                let ended = ended?;
                let message = String::from_utf8(ended.stderr)?;
                assert!(ended.status.success() || message.contains(&output), "{message}");
                codes.push(ended.status.code());
            }
            codes.sort_unstable();
            assert_eq!(codes, [Some(0), Some(1)]);
            match ending {
                "" => assert!(contents(&tweedie.path(&output))? == contents(&tweedie.path("alone"))?),
                _ => {
                    assert!(std::fs::read(tweedie.path(&output))? == std::fs::read(tweedie.path("alone.safetensors"))?)
                }
            }
        }
    }
    Ok(())
}

/// Killed at any moment, a conversion onto a model leaves the old one whole or the new one.
#[test]
fn a_killed_conversion_leaves_one_model_whole() -> TestResult {
    let tweedie = with_model()?;
    for output in ["old", "out"] {
        tweedie.run(&["model", "convert", "box/work/m", output])?.success()?;
    }
    let force = ["model", "convert", "box/work/m", "out", "--force", "--dtype", "f16"];
    tweedie.run(&["model", "convert", "box/work/m", "new", "--dtype", "f16"])?.success()?;
    let (old, new) = (contents(&tweedie.path("old"))?, contents(&tweedie.path("new"))?);
    let (mut kills, mut delay) = (0, Duration::from_millis(1));
    loop {
        let mut child = tweedie.spawn(&force)?;
        std::thread::sleep(delay);
        child.kill()?;
        let ended = child.wait()?.success();
        let now = contents(&tweedie.path("out"))?;
        assert!(now == old || now == new, "neither the old nor the new one after {kills} kills");
        if ended {
            assert!(now == new && kills > 3, "{kills} kills");
            return Ok(());
        }
        kills += 1;
        delay = delay.mul_f64(1.3);
    }
}

/// A disk that is full in the middle of it costs nothing that was there.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_what_was_there() -> TestResult {
    let tweedie = with_model()?;
    for output in ["out", "out.safetensors"] {
        tweedie.run(&["model", "convert", "box/work/m", output])?.success()?;
    }
    let before = contents(tweedie.folder.path())?;
    for output in ["out", "out.safetensors", "new", "new.safetensors"] {
        let arguments = ["model", "convert", "box/work/m", output, "--force"];
        let ended = tweedie.with_small_files(16, &arguments).output()?;
        let message = String::from_utf8(ended.stderr)?;
        assert!(ended.status.code() == Some(1) && message.contains("cannot write"), "{message}");
        assert!(contents(tweedie.folder.path())? == before, "{output}");
    }
    Ok(())
}

/// Pictures that are made at the same time under names of the program's choice all have one.
#[test]
fn pictures_made_at_once_all_stay() -> TestResult {
    let tweedie = with_model()?;
    let arguments =
        ["txt2img", "--model", "box/work/m", "--prompt", "race", "--steps", "1", "--width", "32", "--height", "32"];
    let runs = (0..4).map(|_| tweedie.spawn(&arguments)).collect::<TestResult<Vec<_>>>()?;
    for run in runs {
        let ended = run.wait_with_output()?;
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_eq!(tweedie.files()?.iter().filter(|name| name.ends_with(".png")).count(), 4);
    Ok(())
}

/// With no room for a picture, or killed before it is whole, there is none, and what was there stays.
#[cfg(unix)]
#[test]
fn a_picture_is_whole_or_not_there() -> TestResult {
    let tweedie = with_model()?;
    let draw = ["txt2img", "--model", "box/work/m", "--prompt", "x", "--steps", "2", "--width", "64", "--height", "64"];
    let draw = [&draw[..], &["--quiet", "--output", "x.png"]].concat();
    for force in [&[][..], &["--force"]] {
        let ended = tweedie.with_small_files(1, &[&draw[..], force].concat()).output()?;
        let message = String::from_utf8(ended.stderr)?;
        assert!(ended.status.code() == Some(1) && message.contains("cannot write"), "{message}");
        match force {
            [] => assert_eq!(tweedie.files()?, ["box"]),
            _ => assert_eq!(std::fs::read(tweedie.path("x.png"))?, b"precious"),
        }
        std::fs::write(tweedie.path("x.png"), "precious")?;
    }
    let mut delay = Duration::from_millis(1);
    loop {
        let mut child = tweedie.spawn(&[&draw[..], &["--force"]].concat())?;
        std::thread::sleep(delay);
        child.kill()?;
        let ended = child.wait()?.success();
        let picture = std::fs::read(tweedie.path("x.png"))?;
        assert!(picture == b"precious" || image::load_from_memory(&picture).is_ok());
        if ended {
            return Ok(());
        }
        delay = delay.mul_f64(1.4);
    }
}

/// No option replaces what is there without being told to, and no two name one file.
#[test]
fn every_option_that_writes_spares_what_is_there() -> TestResult {
    let tweedie = with_model()?;
    std::fs::write(tweedie.path("a.png"), "precious")?;
    let bench = ["bench", "--model", "box/work/m", "--size", "64", "--runs", "1", "--breakdown", "a.png"];
    let sample = ["sample", "mnist", "--steps", "2", "--output", "b.png"];
    let draw = ["txt2img", "--model", "box/work/m", "--prompt", "x", "--steps", "1", "--width", "32", "--height", "32"];
    let with = |base: &[&'static str], more: &[&'static str]| [base, more].concat();
    for arguments in [
        bench.to_vec(),
        with(&sample, &["--trajectory", "a.png"]),
        with(&sample, &["--animation", "a.png"]),
        with(&draw, &["--output", "b.png", "--plot-schedule", "a.png"]),
        with(&draw, &["--output", "b.png", "--save-steps", "box"]),
    ] {
        tweedie.run(&arguments)?.fails(1, &["--force"])?;
    }
    for arguments in [
        with(&draw, &["--output", "c.png", "--plot-schedule", "./c.png"]),
        with(&draw, &["--output", "c.png", "--num-images", "2", "--plot-schedule", "c-1.png"]),
        with(&sample, &["--force", "--animation", "b.png"]),
        with(&sample, &["--force", "--trajectory", "c.png", "--animation", "c.png"]),
    ] {
        tweedie.run(&arguments)?.fails(2, &["two options name"])?;
    }
    assert_eq!(std::fs::read_to_string(tweedie.path("a.png"))?, "precious");
    assert_eq!(tweedie.files()?, ["a.png", "box"]);
    Ok(())
}
