//! What the experiments among the examples have alike: rows that outlive a kill, and digits that are trained, drawn and judged.

#[path = "../examples/experiments/mod.rs"]
mod experiments;

use experiments::arguments::STEPS;
use experiments::training::{digits, request, small, train, work};
use experiments::{Column, Experiment, Figures, Judge, Outcome, Results};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use tweedie::metrics::{Figure, Interval};
use tweedie::training::data::SplitMix64;
use tweedie_pipelines::PixelTrainingSettings;

const EXPERIMENT: Experiment = Experiment {
    name: "numbers",
    title: "Numbers",
    options: &[STEPS],
    columns: &[Column::setting("number"), Column::figure("root", "root", 2), Column::figure("fid", "FID", 1)],
};

#[derive(Debug, Serialize)]
struct Number {
    number: u64,
}

fn open(output: &Path, more: &[&str], samples: usize) -> Outcome<Results> {
    let output = output.to_string_lossy();
    let given = ["--output", &output].into_iter().chain(more.iter().copied()).map(str::to_owned);
    Results::open(EXPERIMENT, &EXPERIMENT.read(given.collect())?, json!({"samples": samples}))
}

/// Measures 1 to 3, or fails at a number; gives those that were measured.
fn measure(results: &mut Results, fails_at: Option<u64>) -> (Vec<u64>, Outcome) {
    let mut measured = Vec::new();
    let rows = (1..=3).map(|number| Number { number }).collect();
    let outcome = results.measure(
        rows,
        |_| 1.0,
        |row, _| {
            if fails_at == Some(row.number) {
                return Err("stopped".into());
            }
            measured.push(row.number);
            let value = (row.number as f64).sqrt();
            let interval = Some(Interval { low: value - 0.5, high: value + 0.5 });
            Ok(Figures::default().with("root", Figure { value, interval }))
        },
    );
    (measured, outcome.map(drop))
}

#[test]
fn rows_that_are_done_stay() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("results");
    let (measured, stopped) = measure(&mut open(&output, &[], 20)?, Some(2));
    assert!(measured == [1] && stopped.is_err());

    let message = |opened: Outcome<Results>| opened.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message(open(&output, &[], 20)).contains("--resume"));
    let other = message(open(&output, &["--resume"], 30));
    assert!(other.contains("samples 20") && other.contains("30"), "{other}");

    let mut none = open(&output, &["--resume", "--rows", "number 7"], 20)?;
    assert!(measure(&mut none, None).0.is_empty());
    let none = none.finish(&[]).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(none.contains("no row has") && none.contains("number 1; number 2; number 3"), "{none}");
    let mut chosen = open(&output, &["--resume", "--rows", "number 7|number 2"], 20)?;
    assert_eq!(measure(&mut chosen, None).0, [2]);
    chosen.finish(&[])?;

    let mut results = open(&output, &["--resume"], 20)?;
    let (measured, finished) = measure(&mut results, None);
    finished?;
    assert_eq!(measured, [3]);
    results.finish(&[])?;
    let file: Value = serde_json::from_slice(&std::fs::read(output.join("results.json"))?)?;
    let numbers: Vec<_> = (0..3).map(|row| &file["rows"][row]["settings"]["number"]).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(file["rows"][0]["figures"]["root_interval"], json!([0.5, 1.5]));
    let markdown = std::fs::read_to_string(output.join("results.md"))?;
    assert!(markdown.contains("| number | root | FID |\n|---|---|---|\n| 1 | 1.00 (0.50 to 1.50) | - |"), "{markdown}");
    Ok(())
}

#[test]
fn options_that_cannot_be_used_are_named() {
    let read = |given: &[&str]| EXPERIMENT.read(given.iter().map(|text| (*text).to_owned()).collect());
    let message = |given: &[&str]| read(given).err().unwrap_or_default();
    assert!(message(&[]).contains("--output") && message(&["--output"]).contains("DIR"));
    assert!(message(&["--output", "a", "--model", "b"]).contains("--model"));
    assert!(message(&["--output", "a", "--size=week"]).contains("hour or night"));
    assert!(message(&["--output", "a", "--resume=1"]).contains("no value"));
    let given = read(&["--output", "a", "--samples=5", "--steps", "7"]);
    assert!(given.is_ok_and(|given| given.steps(9).is_ok_and(|steps| steps == 7) && given.samples(50).is_err()));
}

/// Stripes in the form of MNIST.
fn write_digits(folder: &Path, part: &str, count: u32, seed: u64) -> Outcome {
    let header = |magic: u32, sizes: &[u32]| {
        let numbers = std::iter::once(&magic).chain(sizes);
        numbers.flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>()
    };
    let (mut images, mut labels) = (header(0x0803, &[count, 28, 28]), header(0x0801, &[count]));
    let mut draws = SplitMix64::numbered(seed, 0);
    for i in 0..count {
        let (class, shift) = (i % 10, draws.below(6) as u32);
        labels.push(class as u8);
        images.extend((0..784u32).map(|p| if (p / 28 + class * (p % 28) + shift) % 9 < 4 { 230 } else { 10 }));
    }
    std::fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images)?;
    std::fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), labels)?;
    Ok(())
}

/// A training that was done is not done again, and as many digits are drawn as were asked for.
#[test]
fn digits_are_trained_drawn_and_judged() -> Outcome {
    let folder = tempfile::tempdir()?;
    write_digits(folder.path(), "train", 60, 1)?;
    write_digits(folder.path(), "t10k", 40, 2)?;
    let (data, judge) = (digits(folder.path())?, Judge::open(folder.path(), 12)?);
    let mut results = open(&folder.path().join("results"), &[], 12)?;
    results.measure_floor(&judge)?;
    let settings = PixelTrainingSettings { channels: vec![4, 8], ..small(2) };
    let rows = vec![Number { number: 1 }, Number { number: 2 }];
    let rows = results.measure(
        rows,
        |_| work(2) + judge.work(2),
        |_, progress| {
            let trained = train(settings.clone(), &data, &folder.path().join("run"), progress)?;
            let request = tweedie_pipelines::PixelRequest { steps: Some(2), ..request() };
            let judged = judge.judge(&trained.pipeline, request, judge.work(2), progress)?;
            Ok(judged.with_number("loss", trained.loss).with_number("training_seconds", trained.seconds))
        },
    )?;
    let of = |name: &str| rows.iter().map(|(_, figures)| figures.get(name)).collect::<Vec<_>>();
    for name in ["fid", "kid", "is", "precision", "recall", "loss", "training_seconds"] {
        assert!(of(name)[0].is_some() && of(name)[0] == of(name)[1], "{name} {:?}", of(name));
    }
    assert!(results.floor("fid") < of("fid")[0]);
    Ok(())
}
