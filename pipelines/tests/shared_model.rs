//! One loaded model, many threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tweedie::images::{Mask, Photo, Picture};
use tweedie_pipelines::{
    Error, Event, ImageToImageRequest, InpaintRequest, LatentDiffusion, Settings, TaskKind, TextToImageRequest, Usage,
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

/// What eight threads ask of the model: each of the three tasks, with and without guidance.
fn all_settings(model: &LatentDiffusion) -> TestResult<Vec<Settings>> {
    let mut all = Vec::new();
    for i in 0..8 {
        let prompt = ["a fox on a blue background", "an owl", "a red heart"][i % 3];
        let mut text = text(prompt, i as u64);
        text.guidance_scale = [None, Some(1.0)][usize::from(i == 3)];
        all.push(match i % 3 {
            0 => model.settle(&text)?,
            1 => model.settle(&ImageToImageRequest { text, image: photo()?, strength: Some(0.6) })?,
            _ => model.settle(&InpaintRequest { text, ..InpaintRequest::new("", photo()?, Some(mask()?)) })?,
        });
    }
    Ok(all)
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

/// Every picture is the one that a run alone makes, to the bit, whatever runs beside it and is stopped there; afterwards no
/// memory is held that was not before.
#[test]
fn threads_share_a_model_and_leave_nothing_behind() -> TestResult {
    let _alone = alone();
    let model = LatentDiffusion::builder().build()?;
    let settings = all_settings(&model)?;
    let alone = settings.iter().map(|settings| Ok(model.generate_settled(settings)?.pictures));
    let alone = alone.collect::<TestResult<Vec<_>>>()?;
    let before = IN_USE.load(Ordering::Relaxed);
    std::thread::scope(|scope| -> TestResult {
        let threads = settings.iter().zip(&alone).enumerate().map(|(i, (settings, alone))| {
            let model = &model;
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
    })?;
    // Threads and the pool keep some kilobytes; one picture's states would be megabytes.
    let left = IN_USE.load(Ordering::Relaxed) - before;
    assert!(left < 100_000, "{left} bytes are left");
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
