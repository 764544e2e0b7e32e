//! `tweedie train judge` and `tweedie eval prompts`.

mod tweedie;

use ::tweedie::images::{ColorType, Photo, Picture, Samples};
use ::tweedie::models::judge::{Seen, Shown, Unsaid};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use tweedie::{TestResult, Tweedie, golden, kill_when_there, pixels, read_json};
use tweedie_pipelines::open_judge;

/// The side of the pictures; the judge looks at half of it.
const SIDE: usize = 32;
const CONCEPTS: [&str; 3] = ["a bar", "a box", "a disc"];
const BACKGROUNDS: [(&str, [u8; 3]); 3] = [("blue", [30, 60, 220]), ("green", [40, 170, 60]), ("red", [210, 40, 40])];
const STYLES: [(&str, u8); 2] = [("dark", 10), ("light", 245)];

/// A composed picture: shapes of concepts at places, their radius, a background and a style.
struct Composition {
    shapes: Vec<(usize, (usize, usize))>,
    radius: usize,
    background: usize,
    style: usize,
}

impl Composition {
    /// One of many, by its number.
    fn new(number: usize) -> (Self, Value) {
        let (first, background, style) = (number % 3, number / 3 % 3, number / 9 % 2);
        // Which of the places has pairs of which things changes from round to round.
        let second = (first + number / 18) % 3;
        let (centre, near, far) = (SIDE / 2, SIDE / 4, 3 * SIDE / 4);
        let (layout, radius) = (number / 18 % 5, 5);
        let (shapes, position, size, relation) = match layout {
            0 => (vec![(first, (centre, centre))], None, "normal", None),
            1 => (vec![(first, (near, centre))], Some("left"), "small", None),
            2 => (vec![(first, (far, centre))], Some("right"), "small", None),
            3 => (vec![(first, (near, centre)), (second, (far, centre))], None, "normal", Some("beside")),
            _ => (vec![(first, (centre, near)), (second, (centre, far))], None, "normal", Some("above")),
        };
        let radius = if layout == 0 { 10 } else { radius };
        let concepts: Vec<&str> = shapes.iter().map(|(concept, _)| CONCEPTS[*concept]).collect();
        let shows = json!({
            "concepts": concepts, "background": BACKGROUNDS[background].0, "style": STYLES[style].0,
            "position": position, "size": size, "relation": relation,
        });
        (Self { shapes, radius, background, style }, shows)
    }

    fn png(&self, number: usize) -> TestResult<Vec<u8>> {
        let inside = |x: usize, y: usize| {
            self.shapes.iter().any(|&(concept, (left, top))| {
                let (dx, dy, r) = (x.abs_diff(left), y.abs_diff(top), self.radius);
                match concept {
                    0 => dx <= r && dy <= r / 4,
                    1 => dx <= r && dy <= r && (dx > r - 3 || dy > r - 3),
                    _ => dx * dx + dy * dy <= r * r,
                }
            })
        };
        let samples = (0..SIDE * SIDE).flat_map(|i| {
            let colour = match inside(i % SIDE, i / SIDE) {
                true => [STYLES[self.style].1; 3],
                false => BACKGROUNDS[self.background].1,
            };
            // A little unrest, another one in each picture.
            colour.map(|value| value.saturating_add((i * (number + 7) % 9) as u8))
        });
        Ok(Photo::new(SIDE, SIDE, ColorType::Rgb, Samples::Eight(samples.collect()))?.encode_png(&[])?)
    }
}

/// The compositions of some numbers, with their list.
fn write_pictures(folder: &Path, numbers: impl Iterator<Item = usize>) -> TestResult {
    std::fs::create_dir_all(folder)?;
    let mut lines = String::new();
    for number in numbers {
        let (composition, shows) = Composition::new(number);
        let name = format!("{number:05}.png");
        std::fs::write(folder.join(&name), composition.png(number)?)?;
        lines += &format!("{}\n", json!({"file_name": name, "text": "a picture", "shows": shows}));
    }
    Ok(std::fs::write(folder.join("metadata.jsonl"), lines)?)
}

/// Every composition but those of `test`, which show combinations that are not among the others.
fn write_data(program: &Tweedie) -> TestResult {
    let is_held_out = |number: &usize| number % 7 == 3;
    write_pictures(&program.path("data/train"), (0..270).filter(|number| !is_held_out(number)))?;
    write_pictures(&program.path("data/test"), (0..270).filter(is_held_out))
}

const SMALL: [&str; 12] = [
    "train",
    "judge",
    "--data",
    "data",
    "--sample-size",
    "16",
    "--channels",
    "8,16,32",
    "--summary-size",
    "32",
    "--quiet",
    "--json",
];

fn autoencoder() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../weights/emoji-ldm").to_string_lossy().into_owned()
}

/// Where it could only guess a third of concepts and backgrounds, it is right about nearly all, raw and decoded.
#[test]
fn a_judge_learns_what_pictures_show() -> TestResult {
    let program = Tweedie::new()?;
    write_data(&program)?;
    let vae = autoencoder();
    let run =
        |output: &str, more: &[&str]| program.run(&[&SMALL[..], &["--output", output, "--vae", &vae], more].concat());
    let result = run("run", &["--steps", "320", "--batch-size", "32", "--shift", "1"])?.success()?.json()?;
    let accuracy = &result["accuracy"];
    for (of, least) in [("raw", 0.9), ("decoded", 0.75)] {
        for measure in ["concept", "background", "style", "position", "size", "both_concepts", "in_order", "relation"] {
            let share = &accuracy[of][measure];
            assert!(share["accuracy"].as_f64().ok_or("no accuracy")? >= least, "{of} {measure}: {share}");
        }
        assert_eq!(accuracy[of]["pictures"], (0..270).filter(|number| number % 7 == 3).count());
    }
    let config = read_json(&program.path("run/model/judge/config.json"))?;
    assert_eq!((&config["accuracy"], &config["concepts"]), (accuracy, &json!(CONCEPTS)));
    assert_eq!(config["position"], json!(["middle", "left", "right"]));
    assert_eq!(config["relation"], json!(["none", "above", "beside"]));
    assert!(program.path("run/decoded.safetensors").is_file());

    // What a picture shows, looked up in the file.
    let judge = open_judge(&program.path("run/model"))?;
    let (composition, _) = Composition::new(3 * 18 + 1);
    std::fs::write(program.path("pair.png"), composition.png(3)?)?;
    let [first, second, background, ..]: Seen = judge.look(&Picture::read(&program.path("pair.png"))?)?;
    assert_eq!([first, second, background], [1, 1, 0]);

    // A run that goes on has nothing to do, and finds the pictures that went through the autoencoder.
    assert_eq!(run("run", &["--resume"])?.success()?.json()?["accuracy"], *accuracy);
    run("run", &["--resume", "--blur", "0.5"])?.fails(2, &["--blur is 0.5", "the run has 1"])?;

    // A judge that goes on from it with steps of nothing is as good; with pictures of other things there is none.
    let further = |output: &str, more: &[&str]| {
        let first = ["train", "judge", "--from", "run/model", "--output", output, "--quiet", "--json"];
        program.run(&[&first[..], &["--vae", &vae, "--steps", "2", "--learning-rate", "1e-12"], more].concat())
    };
    let same = further("further", &["--data", "data"])?.success()?.json()?;
    assert_eq!(same["accuracy"], *accuracy);
    // Wherever that judge is by now, as long as it is the same.
    std::fs::rename(program.path("run/model"), program.path("moved"))?;
    let resumed = ["train", "judge", "--data", "data", "--output", "further", "--resume", "--quiet", "--json"];
    let resume = |more: &[&str]| program.run(&[&resumed[..], more].concat());
    resume(&[])?.fails(1, &["run/model"])?;
    assert_eq!(resume(&["--from", "moved"])?.success()?.json()?["accuracy"], *accuracy);
    resume(&["--from", "further/model"])?.fails(2, &["--from is another model than the run started from"])?;
    std::fs::rename(program.path("moved"), program.path("run/model"))?;
    further("none", &["--data", "data", "--channels", "8,16,32"])?.fails(2, &["--from", "--channels"])?;
    write_pictures(&program.path("other"), 0..2)?;
    further("none", &["--data", "other"])?
        .fails(2, &["concepts", "\"a disc\", which the judge knows", "train a new one"])
}

/// The judge that ships sees in diffusers' pictures of the embedded model what their prompts say, where anybody would.
#[test]
fn the_shipped_judge_sees_what_prompts_say() -> TestResult {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let judge = open_judge(&here.join("../weights/emoji-judge"))?;
    let classes = &judge.config().classes;
    let cases: [(&str, &[&str], &str, Option<&str>); 6] = [
        ("01.png", &["a red apple"], "blue", None),
        ("03.png", &["a pizza"], "white", Some("noto")),
        ("05.png", &["a castle"], "yellow", Some("flat")),
        ("06.png", &["a fox"], "blue", None),
        ("07.png", &["a robot"], "green", None),
        ("09.png", &["a sunflower"], "purple", None),
    ];
    for (file, concepts, background, style) in cases {
        let owned = |name: &str| Some(name.to_owned());
        let shown = Shown {
            concepts: concepts.iter().map(|&name| name.to_owned()).collect(),
            background: owned(background),
            style: style.and_then(owned),
            position: None,
            size: None,
            relation: None,
        };
        let (labels, unknown) = classes.labels(&shown, Unsaid::IsOpen);
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
        let seen = judge.look(&Picture::read(&here.join("tests/emoji_reference").join(file))?)?;
        for (label, seen) in labels.into_iter().zip(seen) {
            assert!(label.is_none_or(|label| label == seen), "{file}: {seen} where {labels:?} are right");
        }
    }
    Ok(())
}

/// Killed after a checkpoint and resumed, it is the judge that is trained in one go, to the bit.
#[test]
fn a_judge_that_is_killed_goes_on() -> TestResult {
    let program = Tweedie::new()?;
    write_pictures(&program.path("data"), 0..90)?;
    let vae = autoencoder();
    let train = |output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tweedie"));
        command
            .stdout(Stdio::null())
            .args(SMALL)
            .args(["--output", output, "--vae", &vae, "--resume", "--steps", "40"]);
        command.args(["--checkpoint-every", "4", "--batch-size", "8", "--vae-share", "0.2"]);
        command.current_dir(program.folder.path());
        command
    };
    assert!(train("whole").status()?.success());
    let saved = program.path("killed/checkpoints/step-000000004/manifest.json");
    kill_when_there(&mut train("killed"), &saved)?;
    assert!(train("killed").status()?.success());
    for file in ["judge/diffusion_pytorch_model.safetensors", "training.json", "judge/config.json"] {
        let read = |run: &str| std::fs::read(program.path(run).join("model").join(file));
        assert_eq!(read("killed")?, read("whole")?, "{file}");
    }
    Ok(())
}

#[test]
fn data_of_which_nothing_is_said_are_refused() -> TestResult {
    let program = Tweedie::new()?;
    let train = || program.run(&[&SMALL[..], &["--output", "run"]].concat());
    train()?.fails(1, &["data", "no such folder"])?;
    write_pictures(&program.path("data"), 0..3)?;
    let list = program.path("data/metadata.jsonl");
    let good = std::fs::read_to_string(&list)?;
    for (from, to, parts) in [
        ("\"shows\"", "\"has\"", ["line 1", "under shows"]),
        ("\"concepts\":[\"a box\"]", "\"concepts\":[]", ["line 2", "concepts is []"]),
        ("\"background\":\"blue\"", "\"background\":3", ["line 1", "background is 3"]),
    ] {
        std::fs::write(&list, good.replace(from, to))?;
        train()?.fails(1, &[&parts[..], &["metadata.jsonl"]].concat())?;
    }
    std::fs::write(&list, good.replace("00002.png", "00009.png"))?;
    train()?.fails(1, &["line 3", "00009.png"])?;
    std::fs::remove_file(&list)?;
    train()?.fails(1, &["metadata.jsonl", "missing"])?;
    assert!(!program.path("run").exists());
    // For other kinds of training what is shown is nothing.
    std::fs::write(&list, good)?;
    let pixel =
        ["train", "pixel", "--data", "data", "--steps", "1", "--channels", "8,8", "--output", "pixel", "--quiet"];
    program.run(&pixel)?.success()?;
    Ok(())
}

/// A trained judge, and a model that draws noise.
fn with_judge() -> TestResult<(Tweedie, String)> {
    let program = Tweedie::new()?;
    write_pictures(&program.path("data"), 0..90)?;
    let run = ["--output", "run", "--steps", "20", "--batch-size", "8"];
    program.run(&[&SMALL[..], &run].concat())?.success()?;
    Ok((program, golden().join("models/sd15").to_string_lossy().into_owned()))
}

/// The table against the judge's opinions of the saved files, counted here; and the pictures against those of txt2img.
#[test]
fn scores_are_counts_of_what_is_seen_in_the_files() -> TestResult {
    let (program, model) = with_judge()?;
    let prompts = json!([
        {"prompt": "one", "kind": "x", "concepts": ["a box"], "background": "red", "style": null, "position": null, "size": null,
         "relation": null},
        {"prompt": "two", "kind": "y", "concepts": ["a disc", "a bar"], "background": "green", "relation": "left"},
        {"prompt": "three", "kind": "x", "concepts": ["a lamp"], "background": "blue"},
    ]);
    std::fs::write(program.path("prompts.json"), prompts.to_string())?;
    let evaluate = ["eval", "prompts", "--model", &model, "--device", "cpu", "--quiet", "--prompts"];
    let evaluate = |more: &[&str]| program.run(&[&evaluate[..], more].concat());
    let judged = ["prompts.json", "--judge", "run/model", "--seeds", "5,0,1", "--batch-size", "2", "--output", "out"];
    let outcome = evaluate(&[&judged[..], &["--json"]].concat())?.success()?;
    assert!(outcome.stderr.contains("does not know the concepts \"a lamp\""), "{}", outcome.stderr);
    let result = outcome.json()?;
    assert_eq!((&result["pictures"], &result["unknown"][0]["value"]), (&json!(9), &json!("a lamp")));

    // Concepts: bar, box, disc, none. Backgrounds: blue, green, red. Arrangements: none, above, beside.
    let judge = open_judge(&program.path("run/model"))?;
    let seen = |prompt: usize, seed: u64| -> TestResult<Seen> {
        Ok(judge.look(&Picture::read(&program.path(&format!("out/{prompt:03}-{seed}.png")))?)?)
    };
    let count = |prompt: usize, is_right: &dyn Fn(Seen) -> bool| -> TestResult<usize> {
        let seen = [0, 1, 5].into_iter().map(|seed| seen(prompt, seed)).collect::<TestResult<Vec<_>>>()?;
        Ok(seen.into_iter().filter(|&seen| is_right(seen)).count())
    };
    let share = |of: &Value, measure: &str| {
        let number = |name: &str| of[measure][name].as_u64().unwrap_or(0) as usize;
        (number("correct"), number("total"))
    };
    let (overall, x, y) = (&result["overall"], &result["kinds"]["x"], &result["kinds"]["y"]);
    let concept = count(0, &|seen| seen[0] == 1 && seen[1] == 3)?;
    assert_eq!(
        (share(overall, "concept"), share(x, "concept"), share(y, "concept")),
        ((concept, 3), (concept, 3), (0, 0))
    );
    let both = count(1, &|seen| [[2, 0], [0, 2]].contains(&[seen[0], seen[1]]))?;
    let left = count(1, &|seen| seen[0] == 2 && seen[1] == 0 && seen[6] == 2)?;
    assert_eq!((share(y, "both_concepts"), share(y, "relation"), share(x, "relation")), ((both, 3), (left, 3), (0, 0)));
    let backgrounds =
        [count(0, &|seen| seen[2] == 2)?, count(1, &|seen| seen[2] == 1)?, count(2, &|seen| seen[2] == 0)?];
    assert_eq!(share(x, "background"), (backgrounds[0] + backgrounds[2], 6));
    assert_eq!(share(overall, "background"), (backgrounds.iter().sum(), 9));
    let joint = count(0, &|seen| [seen[0], seen[1], seen[2]] == [1, 3, 2])?
        + count(1, &|seen| [seen[0], seen[1], seen[2], seen[6]] == [2, 0, 1, 2])?;
    assert_eq!(share(overall, "joint"), (joint, 6));
    assert_eq!(read_json(&program.path("out/scores.json"))?["overall"], *overall);

    let one =
        ["txt2img", "--model", &model, "--device", "cpu", "--prompt", "two", "--seed", "1", "--output", "two.png"];
    program.run(&one)?.success()?;
    assert_eq!(std::fs::read(program.path("two.png"))?, std::fs::read(program.path("out/001-1.png"))?);
    let (width, _, picture) = pixels(&program.path("two.png"))?;
    let (grid_width, grid_height, grid) = pixels(&program.path("out/grid-1.png"))?;
    // Two kinds are two rows, the first of two pictures.
    assert_eq!((grid_width, grid_height), (2 * width + 2, 2 * width + 2));
    let row = 3 * (grid_width * (width + 2)) as usize;
    assert_eq!(grid[row..row + 3 * width as usize], picture[..3 * width as usize]);

    evaluate(&judged)?.fails(1, &["out", "not empty", "--force"])?;
    let text = evaluate(&[&judged[..], &["--force"]].concat())?.success()?.stdout;
    let all = text.lines().find(|line| line.starts_with("all ")).ok_or("no row of all")?;
    assert!(all.contains(&format!("{:.1} % of 3", 100.0 * concept as f64 / 3.0)), "{text}");
    Ok(())
}

#[test]
fn prompts_that_cannot_be_used_say_why() -> TestResult {
    let (program, model) = with_judge()?;
    let evaluate = ["eval", "prompts", "--model", &model, "--device", "cpu", "--quiet", "--prompts"];
    let evaluate = |more: &[&str]| program.run(&[&evaluate[..], more].concat());
    std::fs::write(program.path("lines.txt"), "a box\n\na disc\n")?;
    evaluate(&["lines.txt", "--judge", "run/model"])?.fails(2, &["\"a box\"", "not said", "--judge"])?;
    evaluate(&["gone.json", "--judge", "run/model"])?.fails(1, &["gone.json"])?;
    evaluate(&["lines.txt", "--judge", "data"])?.fails(1, &["judge/config.json"])?;
    evaluate(&["lines.txt", "--output", "out", "--seeds", "3,3"])?.fails(2, &["twice", "3"])?;
    evaluate(&["lines.txt", "--output", "out", "--batch-size", "0"])?.fails(2, &["batch size"])?;
    evaluate(&["lines.txt"])?.fails(2, &["--output"])?;
    std::fs::write(program.path("bad.json"), r#"[{"prompt": "a", "concepts": ["b"], "size": 4}]"#)?;
    evaluate(&["bad.json", "--judge", "run/model"])?.fails(1, &["bad.json", "prompt 1 (a)", ": size is 4"])?;
    assert!(!program.path("out").exists());
    // Pictures only, of lines of text.
    let files = evaluate(&["lines.txt", "--output", "out", "--seeds", "2"])?.success()?.stdout;
    assert_eq!(files, "out/grid-2.png\n");
    let (width, _, _) = pixels(&program.path("out/001-2.png"))?;
    assert_eq!(pixels(&program.path("out/grid-2.png"))?.0, 2 * width + 2);
    Ok(())
}
