//! `tweedie train mnist`, killed, interrupted, out of disk space, and asked for what it cannot do.

mod tweedie;

use ::tweedie::kernels::InstructionSet;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tweedie::digits::{arguments, with_data};
use tweedie::{TestResult, Tweedie, kill_when_there};

/// Steps of the short runs here.
const STEPS: u64 = 120;
/// How often the process is killed.
const KILLS: usize = 50;

/// The model's bytes, the last checkpoint's manifest, and each step with its loss and gradient norm.
type Bits = (Vec<u8>, String, Vec<(u64, String)>);

/// What a finished run has made, but for the seconds: the model's bytes, the last checkpoint's hashes, and the losses.
fn result(run: &Path) -> TestResult<Bits> {
    let model = std::fs::read(run.join("model/unet/diffusion_pytorch_model.safetensors"))?;
    let manifest = std::fs::read_to_string(run.join(format!("checkpoints/step-{STEPS:09}/manifest.json")))?;
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let lines = metrics.lines().map(|line| {
        let line: Value = serde_json::from_str(line)?;
        Ok((line["step"].as_u64().unwrap_or(0), format!("{} {}", line["loss"], line["gradient_norm"])))
    });
    Ok((model, manifest, lines.collect::<TestResult<_>>()?))
}

fn newest_step(run: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return 0 };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
}

/// Runs until `delay` is over and kills with SIGKILL; whether the process was done before.
fn run_and_kill(tweedie: &Tweedie, arguments: &[&str], delay: Duration) -> TestResult<bool> {
    let mut child = tweedie.spawn(arguments)?;
    let start = Instant::now();
    while start.elapsed() < delay {
        if let Some(status) = child.try_wait()? {
            assert!(status.success(), "{status}");
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    Ok(child.wait()?.success())
}

/// Killed fifty times at random moments and resumed each time, a run ends with the bits of one that was left alone.
#[test]
fn a_run_that_is_killed_fifty_times_ends_with_the_same_bits() -> TestResult {
    let tweedie = with_data()?;
    let steps = STEPS.to_string();
    let options = ["--resume", "--seed", "3", "--steps", &steps, "--checkpoint-every", "2", "--class-dropout", "0.3"];
    tweedie.run(&arguments("whole", &options))?.success()?;
    let whole = result(&tweedie.path("whole"))?;
    assert_eq!(whole.2.iter().map(|line| line.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());

    // The moments: uniform up to a longest delay, which follows the machine's speed so that each run is killed often.
    let (mut kills, mut runs, mut longest) = (0, 0, 0.4);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    while kills < KILLS {
        let name = format!("killed-{runs}");
        let before = newest_step(&tweedie.path(&name));
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = Duration::from_secs_f64(longest * (state >> 11) as f64 / (1u64 << 53) as f64);
        if run_and_kill(&tweedie, &arguments(&name, &options), delay)? {
            assert_eq!(result(&tweedie.path(&name))?, whole, "after {kills} kills");
            runs += 1;
            longest *= 0.6;
            continue;
        }
        kills += 1;
        let done = newest_step(&tweedie.path(&name)).saturating_sub(before);
        longest = if done == 0 { longest * 1.15 } else { f64::max(longest * 0.9, 0.05) };
    }
    let name = format!("killed-{runs}");
    tweedie.run(&arguments(&name, &options))?.success()?;
    assert_eq!(result(&tweedie.path(&name))?, whole, "after {kills} kills in {} runs", runs + 1);
    // Nothing half-made is left, nor what a kill keeps from being removed after a newer one was made.
    let checkpoints = tweedie.path(&name).join("checkpoints");
    let count = || std::fs::read_dir(&checkpoints).map(Iterator::count);
    assert_eq!(count()?, 2);
    let newest = checkpoints.join(format!("step-{STEPS:09}"));
    let old = checkpoints.join("step-000000001");
    std::fs::create_dir(&old)?;
    for file in std::fs::read_dir(newest)? {
        let file = file?;
        std::fs::copy(file.path(), old.join(file.file_name()))?;
    }
    tweedie.run(&arguments(&name, &options))?.success()?;
    assert_eq!((count()?, old.exists()), (2, false));
    Ok(())
}

/// Waits until a run that was started has done a step more than it had.
#[cfg(unix)]
fn wait_for_a_step(run: &Path, child: &mut Child) -> TestResult {
    let metrics = run.join("metrics.jsonl");
    let length = || std::fs::metadata(&metrics).map_or(0, |metadata| metadata.len());
    let (start, before) = (Instant::now(), length());
    while length() <= before {
        assert!(start.elapsed() < Duration::from_secs(120) && child.try_wait()?.is_none(), "no step was done");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The status is that of shells: 128 and the signal's number.
#[cfg(unix)]
#[test]
fn a_signal_saves_and_stops() -> TestResult {
    let tweedie = with_data()?;
    let options = ["--resume", "--steps", "100000", "--checkpoint-every", "100000", "--sample-every", "100000"];
    for (signal, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let mut child = tweedie.spawn(&arguments("run", &options))?;
        wait_for_a_step(&tweedie.path("run"), &mut child)?;
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status()?.success());
        let output = child.wait_with_output()?;
        assert_eq!(output.status.code(), Some(status));
        let message = String::from_utf8(output.stderr)?;
        assert!(message.contains("go on with --resume"), "{message}");
        assert_eq!(message.contains("press Ctrl-C again"), status == 130, "{message}");
        let steps = steps_of(&tweedie.path("run"))? as u64;
        assert_eq!(newest_step(&tweedie.path("run")), steps, "the checkpoint is that of the last step");
    }
    Ok(())
}

/// As `nohup` starts it.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_told_to_outlive_its_terminal_does() -> TestResult {
    let tweedie = with_data()?;
    let options = ["--steps", "100000", "--checkpoint-every", "100000", "--sample-every", "100000"];
    let mut child = tweedie.after("trap '' HUP", &arguments("run", &options)).stderr(Stdio::null()).spawn()?;
    wait_for_a_step(&tweedie.path("run"), &mut child)?;
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status()?.success());
    wait_for_a_step(&tweedie.path("run"), &mut child)?;
    wait_for_a_step(&tweedie.path("run"), &mut child)?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Killed with a checkpoint of the step just written, or before, a run that goes on has all its samples.
#[test]
fn a_kill_costs_no_samples() -> TestResult {
    let tweedie = with_data()?;
    let options = ["--resume", "--steps", "6", "--checkpoint-every", "3", "--sample-every", "3"];
    let names = |run: &str| -> TestResult<Vec<_>> {
        let entries = std::fs::read_dir(tweedie.path(run).join("samples"))?;
        let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<TestResult<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    tweedie.run(&arguments("whole", &options))?.success()?;
    for step in [3, 6] {
        let run = format!("killed-{step}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command.args(arguments(&run, &options)).current_dir(tweedie.folder.path()).stderr(Stdio::null());
        let manifest = tweedie.path(&run).join(format!("checkpoints/step-{step:09}/manifest.json"));
        kill_when_there(&mut command, &manifest)?;
        tweedie.run(&arguments(&run, &options))?.success()?;
        assert_eq!(names(&run)?, names("whole")?);
    }
    Ok(())
}

/// What a link in a run's folder leads to is not the run's.
#[cfg(unix)]
#[test]
fn a_run_writes_through_no_link() -> TestResult {
    let tweedie = with_data()?;
    tweedie.run(&arguments("run", &["--steps", "3"]))?.success()?;
    std::fs::create_dir(tweedie.path("elsewhere"))?;
    std::fs::write(tweedie.path("elsewhere/precious"), "precious")?;
    for name in
        [".lock", "metrics.jsonl", "loss.png", "config.json", "samples", "checkpoints", "model", "samples/x.png"]
    {
        let (link, aside) = (tweedie.path("run").join(name), tweedie.path("aside"));
        let was_there = std::fs::rename(&link, &aside).is_ok();
        let target = if aside.is_dir() { "elsewhere" } else { "elsewhere/precious" };
        std::os::unix::fs::symlink(tweedie.path(target), &link)?;
        // The settings are read before anything is written.
        let reason = if name == "config.json" { "JSON" } else { "it is a link" };
        tweedie.run(&arguments("run", &["--resume"]))?.fails(1, &[name, reason])?;
        assert_eq!(std::fs::read_to_string(tweedie.path("elsewhere/precious"))?, "precious", "{name}");
        assert_eq!(std::fs::read_dir(tweedie.path("elsewhere"))?.count(), 1, "{name}");
        std::fs::remove_file(&link)?;
        if was_there {
            std::fs::rename(&aside, &link)?;
        }
    }
    tweedie.run(&arguments("run", &["--resume"]))?.success()?;
    Ok(())
}

/// A limit on the size of files stands for a full disk: writing fails in the middle of a checkpoint.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing_that_was_saved() -> TestResult {
    let tweedie = with_data()?;
    let steps = STEPS.to_string();
    let settings = ["--seed", "3", "--class-dropout", "0.3", "--resume", "--steps", &steps];
    let all = |every: &'static str| {
        let mut all = arguments("run", &settings);
        all.extend(["--checkpoint-every", every]);
        all
    };
    // As far as a checkpoint, then killed.
    let mut child = tweedie.spawn(&all("10"))?;
    while newest_step(&tweedie.path("run")) < 10 {
        assert!(child.try_wait()?.is_none(), "it ended before its first checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    child.kill()?;
    child.wait()?;
    let before = newest_step(&tweedie.path("run"));
    // The kill itself may have come in the middle of a checkpoint.
    let left = half_written(&tweedie)?;
    if before < STEPS {
        let output = tweedie.with_small_files(16, &all("5")).output()?;
        let message = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("cannot write") && message.contains("run/checkpoints/"), "{message}");
        assert!(!message.contains("panicked"), "{message}");
        assert!(half_written(&tweedie)? <= left, "what was half written is gone");
    }
    tweedie.run(&all("10"))?.success()?;
    let mut whole = arguments("whole", &settings);
    whole.extend(["--checkpoint-every", "10"]);
    tweedie.run(&whole)?.success()?;
    assert_eq!(result(&tweedie.path("run"))?, result(&tweedie.path("whole"))?);
    Ok(())
}

/// Checkpoints that have no name of their own yet.
#[cfg(unix)]
fn half_written(tweedie: &Tweedie) -> TestResult<usize> {
    let entries = std::fs::read_dir(tweedie.path("run/checkpoints"))?.flatten();
    Ok(entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part")).count())
}

fn steps_of(run: &Path) -> TestResult<usize> {
    Ok(std::fs::read_to_string(run.join("metrics.jsonl"))?.lines().count())
}

#[test]
fn a_run_is_not_overwritten_and_not_changed() -> TestResult {
    let tweedie = with_data()?;
    tweedie.run(&arguments("run", &["--steps", "3"]))?.success()?;
    let model = std::fs::read(tweedie.path("run/model/unet/diffusion_pytorch_model.safetensors"))?;
    tweedie.run(&arguments("run", &["--steps", "3"]))?.fails(1, &["run", "--resume", "another --output"])?;
    for (option, value, parts) in [
        ("--learning-rate", "0.5", ["--learning-rate is 0.5", "the run has 0.001"]),
        ("--prediction-type", "flow", ["--prediction-type is \"flow\"", "v_prediction"]),
        ("--mixed-precision", "bf16", ["--mixed-precision is \"bf16\"", "the run has \"no\""]),
    ] {
        tweedie.run(&arguments("run", &["--resume", option, value]))?.fails(2, &parts)?;
    }
    // A run of before there was the setting goes on, without.
    let config = tweedie.path("run/config.json");
    let text = std::fs::read_to_string(&config)?;
    let older = text.replace("\"mixed_precision\": \"no\",", "");
    assert_ne!(text, older);
    std::fs::write(&config, older)?;
    tweedie.run(&arguments("run", &["--resume"]))?.success()?;
    std::fs::write(&config, text)?;
    // Other data than that of the run.
    let labels = tweedie.path("data/train-labels-idx1-ubyte");
    let mut bytes = std::fs::read(&labels)?;
    let last = bytes.len() - 1;
    bytes[last] = 0;
    std::fs::write(&labels, bytes)?;
    tweedie
        .run(&arguments("run", &["--resume"]))?
        .fails(2, &["the data is of as many pictures as the run's, but other ones", "another --output"])?;
    assert_eq!(std::fs::read(tweedie.path("run/model/unet/diffusion_pytorch_model.safetensors"))?, model);
    assert_eq!(steps_of(&tweedie.path("run"))?, 3);

    // A folder that is no run.
    std::fs::create_dir(tweedie.path("letters"))?;
    std::fs::write(tweedie.path("letters/a.txt"), "dear")?;
    tweedie.run(&arguments("letters", &[]))?.fails(1, &["letters", "not empty"])?;
    tweedie.run(&arguments("letters", &["--resume"]))?.fails(1, &["letters", "config.json"])
}

#[test]
fn settings_that_cannot_be_are_named() -> TestResult {
    let tweedie = with_data()?;
    let bare = |more: &[&str]| {
        let mut all = vec!["train", "mnist", "--data", "data", "--output", "run", "--quiet"];
        all.extend(more);
        tweedie.run(&all)
    };
    for (more, parts) in [
        (&["--steps", "0"][..], ["--steps is 0", "at least 1"]),
        (&["--batch-size", "0"], ["--batch-size is 0", "at least 1"]),
        (&["--learning-rate", "0"], ["learning rate is 0", "above 0"]),
        (&["--ema-decay", "1.5"], ["decay is 1.5", "between 0 and 1"]),
        (&["--channels", "4,4,4,4,4"], ["8", "multiples of 16"]),
        (&["--prediction-type", "flow", "--learned-variance"], ["learned variance", "no variance"]),
    ] {
        bare(more)?.fails(2, &parts)?;
        assert!(!tweedie.path("run").exists(), "nothing is left of {more:?}");
    }
    bare(&["--lr-schedule", "steps"])?.fails(2, &["--lr-schedule", "constant, cosine"])?;
    Ok(())
}

#[test]
fn a_run_that_goes_astray_names_step_rate_and_checkpoint() -> TestResult {
    let tweedie = with_data()?;
    let more = [
        "--learning-rate",
        "1e30",
        "--lr-schedule",
        "constant",
        "--warmup-steps",
        "0",
        "--checkpoint-every",
        "1",
        "--steps",
        "9",
    ];
    let mut all = vec!["train", "mnist", "--data", "data", "--output", "run", "--quiet", "--channels", "4,8"];
    all.extend(more);
    tweedie.run(&all)?.fails(1, &["step 2", "1e30", "run/checkpoints/step-000000001", "--learning-rate"])
}

/// The finished model of each kind goes through `tweedie sample`.
#[test]
fn what_is_trained_can_be_sampled() -> TestResult {
    let tweedie = with_data()?;
    for (name, more) in [
        ("v", &["--prediction-type", "v_prediction", "--dtype", "f16"][..]),
        ("flow", &["--prediction-type", "flow", "--min-snr-gamma", "5"]),
        ("learned", &["--prediction-type", "epsilon", "--learned-variance", "--importance-sampling"]),
        ("free", &["--unconditional", "--accumulate", "2", "--beta-schedule", "linear"]),
    ] {
        let mut all = arguments(name, &["--steps", "2", "--json"]);
        all.extend(more);
        let json = tweedie.run(&all)?.success()?.json()?;
        assert_eq!((json["steps"].as_u64(), json["model"].as_str()), (Some(2), Some(&*format!("{name}/model"))));
        let (model, picture) = (format!("{name}/model"), format!("{name}.png"));
        tweedie
            .run(&[
                "sample",
                "--checkpoint",
                &model,
                "--num-images",
                "2",
                "--steps",
                "3",
                "--grid",
                "--output",
                &picture,
                "--quiet",
            ])?
            .success()?;
        let side = image::open(tweedie.path(&picture))?.height();
        assert!(side >= 8, "{side}");
        let made: Vec<PathBuf> =
            ["config.json", "loss.png", "samples/step-000002-ema.png"].map(|file| tweedie.path(name).join(file)).into();
        assert!(made.iter().all(|file| file.is_file()), "{made:?}");
    }
    Ok(())
}

/// Grids and the finished model's defaults have as many steps, up to 20, as there are levels to visit once.
#[test]
fn a_model_of_few_timesteps_is_drawn_in_as_many_steps_as_it_has() -> TestResult {
    let tweedie = with_data()?;
    let train =
        ["train", "mnist", "--data", "data", "--channels", "4,8", "--steps", "1", "--sample-every", "1", "--quiet"];
    for (run, timesteps, prediction, steps) in [
        ("one", "1", "v_prediction", 1),
        // Of steps between whole timesteps, the first of which is never left.
        ("four", "4", "epsilon", 3),
        ("twenty", "20", "v_prediction", 19),
        ("flow", "4", "flow", 4),
    ] {
        let these = ["--output", run, "--timesteps", timesteps, "--prediction-type", prediction];
        tweedie.run(&[&train[..], &these].concat())?.success()?;
        assert!(tweedie.path(run).join("samples/step-000001-ema.png").is_file(), "{run}");
        let defaults = std::fs::read(tweedie.path(run).join("model/defaults.json"))?;
        let defaults: Value = serde_json::from_slice(&defaults)?;
        assert_eq!((&defaults["steps"], &defaults["guidance_scale"]), (&steps.into(), &1.0.into()), "{run}");
        let picture = format!("{run}.png");
        let sample = ["sample", "--checkpoint", run, "--num-images", "1", "--output", &picture, "--json", "--quiet"];
        let json = tweedie.run(&sample)?.success()?.json()?;
        assert_eq!(json["settings"]["steps"], steps, "{run}: {json}");
        // The same where the model says nothing.
        if prediction != "flow" {
            std::fs::remove_file(tweedie.path(run).join("model/defaults.json"))?;
            let json =
                tweedie.run(&[&sample[..], &["--force", "--scheduler", "dpm++2m"]].concat())?.success()?.json()?;
            assert_eq!(json["settings"]["steps"], steps, "{run}: {json}");
        }
    }
    Ok(())
}

/// Rounded products change the weights, and where the CPU has no instructions for them the user is told.
#[test]
fn products_of_a_run_may_be_rounded() -> TestResult {
    let tweedie = with_data()?;
    let train = |output: &str, precision: &str| {
        let run = ["train", "mnist", "--data", "data", "--output", output, "--steps", "2", "--batch-size", "4"];
        tweedie.run(&[&run[..], &["--channels", "32,32", "--mixed-precision", precision]].concat())
    };
    let weights =
        |output: &str| std::fs::read(tweedie.path(output).join("model/unet/diffusion_pytorch_model.safetensors"));
    train("exact", "no")?.success()?;
    let rounded = train("rounded", "bf16")?.success()?;
    let told = rounded.stderr.contains("--mixed-precision bf16 is many times slower");
    assert_eq!(told, !InstructionSet::in_use().multiplies_bf16(), "{}", rounded.stderr);
    assert_ne!(weights("exact")?, weights("rounded")?);
    train("other", "f8")?.fails(2, &["no, bf16"])
}

#[test]
fn a_training_step_is_timed() -> TestResult {
    let tweedie = with_data()?;
    let common = ["bench", "--preset", "mnist-training", "--batch", "2", "--runs", "1", "--json"];
    let bench = tweedie.run(&common)?.success()?.json()?;
    assert!(bench["train_step_s"].as_f64().is_some_and(|seconds| seconds > 0.0), "{bench}");
    assert!(
        bench["train_step_kernels"]["conv 3x3, backward"]["calls"].as_u64().is_some_and(|calls| calls > 0),
        "{bench}"
    );
    Ok(())
}
