//! What somebody meets who tries the program for the first time, or comes from another one: where pictures go, what is told, where
//! options come from.

mod tweedie;

use ::tweedie::images::{ColorType, Photo, Samples, TextChunk, encode_png, read_picture_text};
use ::tweedie::images::{Picture, PictureFormat};
use std::path::Path;
use tweedie::{Outcome, TestResult, Tweedie, golden, pixels};

/// A small model with an ordinary schedule, which makes pictures of 64x64.
fn model() -> String {
    golden().join("models/sd15").to_string_lossy().into_owned()
}

/// Two steps of it.
fn draw(tweedie: &Tweedie, command: &str, more: &[&str]) -> TestResult<Outcome> {
    let model = model();
    let base = [command, "--model", &model, "--steps", "2", "--output", "x.png", "--force"];
    tweedie.run(&[&base[..], more].concat())
}

/// The warnings of a run that succeeds.
fn warnings(tweedie: &Tweedie, command: &str, more: &[&str]) -> TestResult<Vec<String>> {
    Ok(draw(tweedie, command, more)?.success()?.warnings())
}

fn save(tweedie: &Tweedie, name: &str, color: ColorType, pixel: impl Fn(usize, usize) -> Vec<u8>) -> TestResult {
    let samples = (0..64 * 64).flat_map(|i| pixel(i % 64, i / 64)).collect();
    let photo = Photo::new(64, 64, color, Samples::Eight(samples))?;
    Ok(std::fs::write(tweedie.path(name), photo.encode_png(&[])?)?)
}

#[test]
fn what_has_no_effect_or_another_is_told_once() -> TestResult {
    let tweedie = Tweedie::new()?;
    let told = |more: &[&str], parts: &[&str]| -> TestResult {
        let told = warnings(&tweedie, "txt2img", more)?;
        let fits = told.len() == 1 && parts.iter().all(|part| told[0].contains(part));
        assert!(fits, "{more:?} must tell of {parts:?}: {told:?}");
        Ok(())
    };
    assert_eq!(warnings(&tweedie, "txt2img", &["a fox (vulpes) at 12:30"])?, Vec::<String>::new());
    assert_eq!(warnings(&tweedie, "txt2img", &["a fox", "--size", "96x96"])?, Vec::<String>::new());
    told(&["a fox", "--size", "160x160"], &["64x64", "160x160", "--strength"])?;
    told(&["a fox", "--size", "160x64"], &["160x64"])?;
    told(&["a fox", "--size", "112x64"], &["112x64"])?;
    told(&["a fox", "--size", "32x32"], &["too little room"])?;
    told(&["a fox", "--size", "32x64"], &["too little room"])?;
    told(&["a fox", "--guidance-scale", "1000000"], &["--guidance-scale", "1000000", "5 to 12"])?;
    told(&["a fox", "--guidance-scale", "1", "--negative-prompt", "b"], &["--negative-prompt", "no effect"])?;
    told(&["a fox", "--scheduler", "edm-euler"], &["edm-euler", "EDM", "--scheduler euler"])?;
    told(&["a fox", "--scheduler", "flow-euler"], &["flow-euler", "epsilon", "--scheduler euler"])?;
    told(&["a (fluffy:1.3) fox, [blurry]"], &["(fluffy:1.3)", "--prompt-syntax weighted"])?;
    told(&["a fox <lora:ink:1>"], &["<lora:ink:1>", "--lora"])?;
    assert!(warnings(&tweedie, "txt2img", &["a (fluffy:1.3) fox", "--prompt-syntax", "weighted"])?.is_empty());
    let lora = golden().join("models/lora/kohya.safetensors");
    told(&["a fox", "--lora", &format!("{}:0", lora.display())], &["kohya.safetensors", "weight 0", "no effect"])?;
    // Who wants quiet has the files' names and nothing else.
    let quiet = draw(&tweedie, "txt2img", &["a fox", "--guidance-scale", "1000000", "--quiet"])?.success()?;
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("x.png\n", ""));
    // Who has the run described finds them there.
    let described = |outcome: Outcome| -> TestResult<serde_json::Value> {
        assert_eq!(outcome.stderr, "");
        Ok(outcome.success()?.json()?["warnings"].clone())
    };
    let much = ["--guidance-scale", "1000000", "--quiet", "--json"];
    let one = described(draw(&tweedie, "txt2img", &[&["a fox"][..], &much].concat())?)?;
    assert!(
        one[0].as_str().is_some_and(|text| text.contains("--guidance-scale of 1000000")) && one[1].is_null(),
        "{one}"
    );
    let one = described(tweedie.run(&[&["sample", "mnist", "--steps", "1"][..], &much].concat())?)?;
    assert!(one[0].as_str().is_some_and(|text| text.contains("1 to 5")) && one[1].is_null(), "{one}");
    assert_eq!(described(draw(&tweedie, "txt2img", &["a fox", "--quiet", "--json"])?)?, serde_json::json!([]));
    Ok(())
}

#[test]
fn so_it_is_with_digits() -> TestResult {
    let tweedie = Tweedie::new()?;
    for (more, part) in [
        (["--scheduler", "flow-euler"], "flow-euler"),
        (["--scheduler", "edm-euler"], "EDM's levels of noise"),
        (["--guidance-scale", "1000000"], "saturated"),
    ] {
        let base = ["sample", "mnist", "--classes", "3", "--steps", "2", "--output", "x.png", "--force"];
        let ended = tweedie.run(&[&base[..], &more].concat())?.success()?;
        assert!(ended.stderr.starts_with("warning: ") && ended.stderr.contains(part), "{}", ended.stderr);
    }
    Ok(())
}

/// What has no name of its own is made under the same one again, if that is wanted.
#[test]
fn a_picture_gives_way_to_one_of_its_name_if_that_is_forced() -> TestResult {
    let tweedie = Tweedie::new()?;
    let draw = |more: &[&str]| -> TestResult<String> {
        let base = ["txt2img", "a fox", "--steps", "1", "--quiet"];
        Ok(tweedie.run(&[&base[..], more].concat())?.success()?.stdout.trim().to_owned())
    };
    assert_eq!(draw(&[])?, "a-fox-0.png");
    assert_eq!(draw(&[])?, "a-fox-0-again.png");
    assert_eq!(draw(&["--force"])?, "a-fox-0.png");
    Ok(())
}

#[test]
fn masks_that_may_not_be_meant_are_told_and_a_hole_is_one() -> TestResult {
    let tweedie = Tweedie::new()?;
    save(&tweedie, "photo.png", ColorType::Rgb, |x, y| vec![(4 * x) as u8, (4 * y) as u8, 90])?;
    save(&tweedie, "red.png", ColorType::Rgb, |_, _| vec![255, 0, 0])?;
    save(&tweedie, "hole.png", ColorType::Rgba, |x, y| vec![200, 100, 50, if x > 20 && y > 20 { 0 } else { 255 }])?;
    save(&tweedie, "mask.png", ColorType::Grey, |x, y| vec![if x > 20 && y > 20 { 255 } else { 0 }])?;
    let mask = |name: &str, more: &[&str]| {
        let base = ["--image", "photo.png", "--mask", name, "a fox"];
        warnings(&tweedie, "inpaint", &[&base[..], more].concat())
    };
    assert!(mask("mask.png", &[])?.is_empty());
    let one = |told: Vec<String>, part: &str| assert!(told.len() == 1 && told[0].contains(part), "{part}: {told:?}");
    one(mask("photo.png", &[])?, "neither black nor white");
    one(mask("mask.png", &["--jump-length", "3"])?, "without --resample");
    assert!(mask("mask.png", &["--jump-length", "1", "--resample", "2"])?.is_empty());
    one(mask("red.png", &[])?, "pure red and blue are not");
    one(warnings(&tweedie, "img2img", &["--image", "hole.png", "a fox"])?, "transparent pixels");

    // What was erased is painted, and nothing else.
    assert!(warnings(&tweedie, "inpaint", &["--image", "hole.png", "a fox"])?.is_empty());
    let painted = Photo::read(&tweedie.path("x.png"))?;
    assert!(!painted.is_transparent_somewhere() && painted.color() == ColorType::Rgba);
    let Samples::Eight(samples) = painted.samples() else { return Err("eight bits".into()) };
    let kept = |i: &usize| i % 64 <= 20 || i / 64 <= 20;
    assert!((0..64 * 64).filter(kept).all(|i| samples[4 * i..4 * i + 4] == [200, 100, 50, 255]));
    assert!((0..64 * 64).filter(|i| !kept(i)).any(|i| samples[4 * i..4 * i + 3] != [200, 100, 50]));
    draw(&tweedie, "inpaint", &["--image", "photo.png", "a fox"])?
        .fails(2, &["--mask", "transparent hole", "--outpaint"])
}

#[test]
fn pictures_go_where_and_in_the_form_that_is_asked_for() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = model();
    let base = ["txt2img", "a fox", "--model", &model, "--steps", "2", "--quiet"];
    let run = |more: &[&str]| tweedie.run(&[&base[..], more].concat());
    let ended = run(&["--output", "a.png"])?.success()?;
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("a.png\n", ""), "the name and nothing else");
    run(&["--output", "a.webp"])?.success()?;
    run(&["--output", "a.JPG"])?.success()?;
    let exact = pixels(&tweedie.path("a.png"))?;
    assert!(pixels(&tweedie.path("a.webp"))? == exact, "WebP keeps every pixel");
    let (_, _, lossy) = pixels(&tweedie.path("a.JPG"))?;
    let mean = lossy.iter().zip(&exact.2).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / lossy.len() as f64;
    // JPEG's quality of 95; noise is the worst that it meets, and halves the resolution of colours.
    assert!(mean > 0.0 && mean < 12.0, "{mean}");
    for name in ["a.png", "a.webp", "a.JPG"] {
        let path = tweedie.path(name);
        let texts = read_picture_text(&std::fs::read(&path)?, &path)?;
        assert!(
            texts.iter().any(|text| text.keyword == TextChunk::PARAMETERS && text.text.starts_with("a fox\nSteps: 2"))
        );
        let verified = tweedie.run(&["verify", name, "--model", &model, "--quiet"])?.success()?;
        assert!(verified.stdout.starts_with("identical"), "{name}: {}", verified.stdout);
    }

    let grid = run(&["--num-images", "3", "--grid", "--output", "grid.png", "--json"])?.success()?;
    assert_eq!(grid.json()?["files"], serde_json::json!(["grid.png"]));
    // Two columns with two pixels between.
    assert_eq!(pixels(&tweedie.path("grid.png")).map(|(width, height, _)| (width, height))?, (130, 130));
    let first = Picture::read(&tweedie.path("grid.png"))?;
    assert_eq!(first.rgb()[..64 * 3], exact.2[..64 * 3]);

    // Four times as large, and verified as such.
    run(&["--scale", "4", "--output", "large.png"])?.success()?;
    assert_eq!(pixels(&tweedie.path("large.png")).map(|(width, height, _)| (width, height))?, (256, 256));
    let verified = tweedie.run(&["verify", "large.png", "--model", &model, "--quiet"])?.success()?;
    assert!(verified.stdout.starts_with("identical"), "{}", verified.stdout);
    run(&["--scale", "1", "--output", "larger.png"])?.fails(2, &["--scale", "2..=16"])?;

    let mut command = tweedie.after("true", &[&base[..], &["--output", "-"]].concat());
    let piped = command.output()?;
    assert!(piped.status.success() && piped.stderr.is_empty());
    assert_eq!(Photo::decode(&piped.stdout, Path::new("-"))?.to_picture().rgb(), exact.2);
    run(&["--output", "-", "--json"])?.fails(2, &["--json", "--output -"])?;
    run(&["--output", "-", "--num-images", "2"])?.fails(2, &["--output -", "--grid"])?;
    assert_eq!(tweedie.files()?, ["a.JPG", "a.png", "a.webp", "grid.png", "large.png"]);
    Ok(())
}

#[test]
fn a_format_that_would_lose_something_is_refused_before_anything_runs() -> TestResult {
    let tweedie = Tweedie::new()?;
    save(&tweedie, "hole.png", ColorType::Rgba, |x, _| vec![200, 100, 50, if x > 20 { 0 } else { 255 }])?;
    let model = model();
    let run = |output: &str| {
        tweedie.run(&["inpaint", "--image", "hole.png", "a fox", "--model", &model, "--steps", "2", "--output", output])
    };
    run("x.jpg")?.fails(2, &["transparency", ".png"])?;
    run("x.webp")?.success()?;
    Ok(())
}

#[test]
fn another_picture_says_what_is_not_given() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = model();
    let run = |more: &[&str]| tweedie.run(&[&["txt2img", "--model", &model], more].concat());
    let rest = ["--scheduler", "dpm++2m-karras", "--seed", "7", "--steps", "3", "--guidance-scale", "4"];
    run(&[&["a fox", "--output", "a.webp"], &rest[..]].concat())?.success()?;
    let again = run(&["--like", "a.webp", "--output", "b.png"])?.success()?;
    assert!(!again.stderr.contains("warning"), "{}", again.stderr);
    assert!(pixels(&tweedie.path("a.webp"))? == pixels(&tweedie.path("b.png"))?);
    // What is given goes before it.
    run(&["--like", "a.webp", "--seed", "8", "--output", "d.png"])?.success()?;
    let fresh = ["a fox", "--scheduler", "dpm++2m-karras", "--seed", "8", "--steps", "3", "--guidance-scale", "4"];
    run(&[&fresh[..], &["--output", "e.png"]].concat())?.success()?;
    assert!(pixels(&tweedie.path("d.png"))? == pixels(&tweedie.path("e.png"))?);
    assert!(pixels(&tweedie.path("d.png"))? != pixels(&tweedie.path("b.png"))?);

    // Of another program, with a model of another name.
    let text = "a fox\nNegative prompt: blurry\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 7, \
                Size: 64x64, Model: dream, Hires upscale: 2";
    let photo = encode_png(&Picture::new(8, 8, vec![0; 192])?, &[TextChunk::new(TextChunk::PARAMETERS, text)])?;
    std::fs::write(tweedie.path("other.png"), photo)?;
    let other = run(&["--like", "other.png", "--output", "f.png", "--json"])?.success()?;
    let settings = &other.json()?["settings"];
    for (name, value) in [("negative_prompt", "blurry"), ("scheduler", "dpm++2m-karras"), ("prompt_syntax", "weighted")]
    {
        assert_eq!(settings[name], value);
    }
    assert!(other.stderr.contains("dream") && other.stderr.contains("Hires upscale (2)"), "{}", other.stderr);
    std::fs::write(
        tweedie.path("plain.png"),
        Photo::read(&tweedie.path("other.png"))?.encode(PictureFormat::Png, &[])?,
    )?;
    run(&["--like", "plain.png"])?.fails(1, &["plain.png", "no settings"])
}

#[test]
fn options_come_from_files_after_the_command_line() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = model();
    let user = tweedie.path("tweedie");
    std::fs::create_dir(&user)?;
    std::fs::write(user.join("config.toml"), format!("steps = 4\nseed = 9\nmodel = {model:?}\n"))?;
    std::fs::write(tweedie.path("tweedie.toml"), "[txt2img]\nsteps = 3\nguidance-scale = 2\n")?;
    let settings = |more: &[&str]| -> TestResult<(serde_json::Value, String)> {
        let ended = tweedie.run(&[&["txt2img", "a fox", "--output", "x.png", "--force", "--json"], more].concat())?;
        let ended = ended.success()?;
        Ok((ended.json()?["settings"].clone(), ended.stderr))
    };
    let (made, told) = settings(&[])?;
    let values =
        |made: &serde_json::Value| ["steps", "seed", "guidance_scale"].map(|name| made[name].as_f64().unwrap_or(-1.0));
    assert_eq!(values(&made), [3.0, 9.0, 2.0], "the project's file, then the user's");
    assert!(told.contains("from tweedie.toml: guidance-scale 2, steps 3"), "{told}");
    assert!(told.contains("config.toml: model ") && told.contains(", seed 9"), "{told}");
    assert_eq!(values(&settings(&["--steps", "2", "--cfg", "1.5"])?.0), [2.0, 9.0, 1.5], "the command line first");
    let (made, told) = settings(&["--no-config", "--model", &model, "--steps", "2"])?;
    assert!(made["seed"] == 0 && !told.contains("from "), "{told}");

    std::fs::write(tweedie.path("tweedie.toml"), "[txt2img]\nforce = true\n")?;
    tweedie.run(&["txt2img", "a fox"])?.fails(2, &["tweedie.toml", "txt2img.force", "command line"])?;
    std::fs::write(tweedie.path("tweedie.toml"), "step = 3\n")?;
    tweedie.run(&["txt2img", "a fox"])?.fails(2, &["tweedie.toml", "step", "no option"])?;
    std::fs::write(tweedie.path("tweedie.toml"), "steps = 0\n")?;
    tweedie.run(&["txt2img", "a fox"])?.fails(2, &["from tweedie.toml: steps 0", "the number of steps is 0"])
}

#[test]
fn short_help_has_what_matters_in_groups() -> TestResult {
    let tweedie = Tweedie::new()?;
    let short = tweedie.run(&["txt2img", "-h"])?.success()?.stdout;
    let long = tweedie.run(&["txt2img", "--help"])?.success()?.stdout;
    let options = |text: &str| text.lines().filter(|line| line.trim_start().starts_with('-')).count();
    assert!(options(&short) <= 20 && options(&long) > 50, "{} {}", options(&short), options(&long));
    for heading in
        ["Prompt:", "Sampling:", "Guidance:", "Size and number:", "Model:", "Adapters:", "Output:", "Examples:"]
    {
        assert!(short.lines().any(|line| line == heading), "{heading} is missing in:\n{short}");
    }
    // Tables are read in a window of a usual width.
    for table in [&["schedulers"][..], &["model", "known"], &["model", "info"]] {
        let shown = tweedie.run(table)?.success()?.stdout;
        let widest = shown.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
        assert!(widest.chars().count() <= 120, "{widest}");
    }
    let whole = tweedie.run(&["--help"])?.success()?.stdout;
    assert!(whole.contains("HF_TOKEN") && whole.contains("TWEEDIE_ISA") && whole.contains("tweedie.toml"));
    Ok(())
}

#[test]
fn a_file_of_prompts_is_drawn_by_one_model_and_goes_on_where_it_stopped() -> TestResult {
    let tweedie = Tweedie::new()?;
    let model = model();
    let lines = "a fox\n\n{\"prompt\": \"an owl\", \"seed\": 5, \"steps\": 3}\n  a bear  \n";
    std::fs::write(tweedie.path("list.txt"), lines)?;
    let base = ["txt2img", "--prompts", "list.txt", "--model", &model, "--steps", "2"];
    let run = |more: &[&str]| tweedie.run(&[&base[..], more].concat());
    let names = ["0001-a-fox.png", "0002-an-owl.png", "0003-a-bear.png"].map(|name| tweedie.path("list").join(name));
    run(&[])?.success()?;
    tweedie
        .run(&["txt2img", "an owl", "--model", &model, "--seed", "5", "--steps", "3", "--output", "owl.png"])?
        .success()?;
    assert!(pixels(&names[1])? == pixels(&tweedie.path("owl.png"))?, "as by itself");

    // What is there stays, what is missing comes.
    let stamps = || names.each_ref().map(|name| name.metadata().and_then(|file| file.modified()).ok());
    std::fs::remove_file(&names[2])?;
    let before = stamps();
    let again = run(&["--json"])?.success()?;
    assert!(again.stderr.contains("2 of 3 were there already"), "{}", again.stderr);
    assert_eq!(again.stdout.lines().count(), 1, "a line a picture that was made: {}", again.stdout);
    assert!(again.json()?["files"][0].as_str().is_some_and(|file| file.ends_with("0003-a-bear.png")));
    assert!(stamps()[..2] == before[..2] && names[2].is_file());

    run(&["--seed", "1"])?.fails(1, &["0001-a-fox.png", "otherwise", "--force"])?;
    run(&["--seed", "1", "--force", "--output", "list"])?.success()?;
    assert!(stamps()[0] != before[0]);
    for (lines, parts) in [
        ("{\"seed\": 3}", ["line 1", "no prompt"]),
        ("a fox\n{\"prompt\": 3", ["line 2", "no JSON"]),
        ("a fox\n{\"prompt\": \"x\", \"stepz\": 3}", ["line 2", "stepz"]),
        ("\n", ["list.txt", "no prompts"]),
    ] {
        std::fs::write(tweedie.path("list.txt"), lines)?;
        run(&["--output", "new"])?.fails(2, &parts)?;
    }
    run(&["--save-steps", "previews"])?.fails(2, &["--save-steps", "--prompts"])
}
