//! One loaded model, many threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tweedie::images::{Mask, Photo, Picture};
use tweedie_pipelines::{
    Error, Event, ImageToImageRequest, InpaintRequest, LatentDiffusion, LoraRequest, Settings, TaskKind,
    TextToImageRequest, Usage,
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Counts the bytes that are in use.
struct Counting;

static IN_USE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it is.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: the memory of one is not that of another.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(prompt: &str, seed: u64) -> TextToImageRequest {
    TextToImageRequest { prompt: prompt.into(), seed, steps: Some(5), ..TextToImageRequest::default() }
}

/// A photo of two colours, 64x64.
fn photo() -> TestResult<Photo> {
    let pixels = (0..64 * 64).flat_map(|i| if i % 64 < 30 { [200, 40, 60] } else { [30, 90, 220] });
    Ok(Photo::from(&Picture::new(64, 64, pixels.collect())?))
}

/// The left half.
fn mask() -> TestResult<Mask> {
    Ok(Mask::new(64, 64, (0..64 * 64).map(|i| if i % 64 < 32 { 255 } else { 0 }).collect())?)
}

/// What eight threads ask of a model: each of the three tasks, with and without guidance, with LoRAs of these weights.
fn all_settings(model: &LatentDiffusion, loras: &[Option<f64>]) -> TestResult<Vec<Settings>> {
    let mut all = Vec::new();
    for i in 0..8 {
        let prompt = ["a fox on a blue background", "an owl", "a red heart"][i % 3];
        let mut text = text(prompt, i as u64);
        text.guidance_scale = [None, Some(1.0)][usize::from(i == 3)];
        text.loras = loras[i % loras.len()].map(lora).into_iter().collect();
        all.push(match i % 3 {
            0 => model.settle(&text)?,
            1 => {
                model.settle(&ImageToImageRequest { strength: Some(0.6), ..ImageToImageRequest::of(photo()?, text) })?
            }
            _ => model.settle(&InpaintRequest::of(photo()?, Some(mask()?), text))?,
        });
    }
    Ok(all)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models").join(name)
}

fn lora(weight: f64) -> LoraRequest {
    LoraRequest { name: golden("lora/kohya.safetensors"), weight }
}

/// A run that is stopped after so many events.
fn cancelled(model: &LatentDiffusion, settings: &Settings, after: usize) -> bool {
    let mut seen = 0;
    let run = model.run(settings, &mut |_| {
        seen += 1;
        if seen > after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    matches!(run, Err(Error::Cancelled))
}

/// Every picture is the one that a run alone makes, to the bit, whatever runs beside it and is stopped there.
fn run_together(model: &LatentDiffusion, settings: &[Settings], alone: &[Vec<Photo>]) -> TestResult {
    std::thread::scope(|scope| -> TestResult {
        let threads = settings.iter().zip(alone).enumerate().map(|(i, (settings, alone))| {
            scope.spawn(move || -> Result<bool, Error> {
                // In a step, and inside the decoder.
                let stopped = [2, 7].into_iter().all(|after| i % 2 == 0 || cancelled(model, settings, after));
                Ok(stopped && model.generate_settled(settings)?.pictures == *alone)
            })
        });
        for (i, thread) in threads.collect::<Vec<_>>().into_iter().enumerate() {
            assert!(thread.join().map_err(|_| "a thread panicked")??, "thread {i}");
        }
        Ok(())
    })
}

/// The same, and a round of such runs holds no memory afterwards that was not held before it, but for `most` bytes.
///
/// Of several rounds the one that leaves least counts: pools (of threads, of the expressions that split a prompt into words)
/// grow for good whenever more threads meet there than ever before, which a round may do by chance. What a run itself
/// leaves, every round leaves.
fn check_shared(model: &LatentDiffusion, settings: &[Settings], most: isize) -> TestResult {
    let alone = settings.iter().map(|settings| Ok(model.generate_settled(settings)?.pictures));
    let alone = alone.collect::<TestResult<Vec<_>>>()?;
    run_together(model, settings, &alone)?;
    let mut left = Vec::new();
    while left.len() < 5 && left.iter().all(|&bytes| bytes >= most) {
        let before = IN_USE.load(Ordering::Relaxed);
        run_together(model, settings, &alone)?;
        left.push(IN_USE.load(Ordering::Relaxed) - before);
    }
    assert!(left.iter().any(|&bytes| bytes < most), "rounds of {} runs leave {left:?} bytes", settings.len());
    Ok(())
}

#[test]
fn threads_share_a_model_and_leave_nothing_behind() -> TestResult {
    let _alone = alone();
    let model = LatentDiffusion::builder().build()?;
    // 1 to 17 kB were seen. Keys and values of one run are 300 kB.
    check_shared(&model, &all_settings(&model, &[None])?, 30_000)
}

#[test]
fn threads_share_a_model_with_different_loras() -> TestResult {
    let _alone = alone();
    let model = LatentDiffusion::builder().model_folder(golden("sd15")).build()?;
    // Half of 93 kB were seen: a text encoder that is built again has a tokenizer of its own, which leaves half a kilobyte, and
    // more where several are built at once. The factors of the LoRAs of 6 runs would be half a megabyte.
    check_shared(&model, &all_settings(&model, &[None, Some(0.5), Some(1.0), Some(-0.7)])?, 250_000)
}

/// The largest difference of two pictures' samples, of 255.
fn difference(a: &Photo, b: &Photo) -> u8 {
    let (a, b) = (a.to_picture(), b.to_picture());
    a.rgb().iter().zip(b.rgb()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// A request's LoRA is that request's alone, and does what the same one does that is merged into the weights.
#[test]
fn a_requests_lora_acts_in_that_request() -> TestResult {
    let _alone = alone();
    let model = LatentDiffusion::builder().model_folder(golden("sd15")).build()?;
    let draw = |loras: Vec<LoraRequest>| -> TestResult<Photo> {
        let request = TextToImageRequest { loras, ..text("an owl", 3) };
        Ok(model.generate(&request)?.pictures.swap_remove(0))
    };
    let (with, without, again) = (draw(vec![lora(0.8)])?, draw(Vec::new())?, draw(vec![lora(0.8)])?);
    assert_eq!(with, again);
    assert_eq!(without, draw(vec![lora(0.0)])?);
    let merged = LatentDiffusion::builder().model_folder(golden("sd15")).lora(golden("lora/kohya.safetensors"), 0.8);
    let merged = merged.build()?.generate(&text("an owl", 3))?.pictures.swap_remove(0);
    // Sums in another order: the bound that pictures of other programs are held to.
    let (off, changed) = (difference(&with, &merged), difference(&with, &without));
    assert!(off <= 2 && changed > 5, "{off} of 255 from the merged one, {changed} from none");
    let once =
        LatentDiffusion::builder().model_folder(golden("sd15")).usage(Usage::Once(TaskKind::TextToImage)).build()?;
    let error = once.generate(&TextToImageRequest { loras: vec![lora(0.8)], ..text("an owl", 3) });
    assert!(error.err().is_some_and(|error| error.to_string().contains("merged")));
    Ok(())
}

/// A stop is heard in every step and after every part of the decoder.
#[test]
fn a_run_stops_wherever_it_is_told_to() -> TestResult {
    let _alone = alone();
    let model = LatentDiffusion::builder().build()?;
    let settings = model.settle(&text("an owl", 1))?;
    let mut events = Vec::new();
    model.run(&settings, &mut |event| {
        events.push(match event {
            Event::Step { .. } => "step",
            Event::Decoding { .. } => "decoding",
            _ => "other",
        });
        ControlFlow::Continue(())
    })?;
    let count = |name: &str| events.iter().filter(|&&event| event == name).count();
    assert!(count("step") == 5 && count("decoding") >= 4, "{events:?}");
    for after in 0..events.len() {
        assert!(cancelled(&model, &settings, after), "after {after} of {events:?}");
    }
    Ok(())
}

/// A model that is loaded for one run says so in the second, and draws what one for all draws.
#[test]
fn a_model_for_one_run_is_used_up_by_it() -> TestResult {
    let _alone = alone();
    let once = LatentDiffusion::builder().usage(Usage::Once(TaskKind::TextToImage)).build()?;
    let settings = once.settle(&text("an owl", 1))?;
    let pictures = once.generate_settled(&settings)?.pictures;
    assert_eq!(pictures, LatentDiffusion::builder().build()?.generate(&text("an owl", 1))?.pictures);
    let error = once.generate_settled(&settings).err().ok_or("a second run")?;
    assert!(error.to_string().contains("Usage::Any"), "{error}");
    Ok(())
}

#[test]
fn models_go_to_other_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<LatentDiffusion>();
}
