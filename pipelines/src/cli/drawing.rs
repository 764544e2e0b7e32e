//! A run of a model on the command line: its progress, and the files of its pictures.

use super::failure::Stopped;
use super::interrupt::Interrupt;
use super::output::{NewFolder, Output};
use super::progress::Progress;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use tweedie::images::{Photo, Picture, TextChunk, encode_animation, encode_png};
use tweedie_pipelines::{Error, Event, LatentDiffusion, Previews, Record, Seconds, Settings};

/// A run that is under way.
pub struct Work<'a> {
    settings: &'a Settings,
    record: &'a Record,
    output: &'a Output,
    /// Where previews go.
    steps: Option<&'a NewFolder>,
    interrupt: &'a Interrupt,
    progress: Progress,
    previews: Previews,
    /// Of pictures that are not finished, what was drawn and written by an autoencoder for previews.
    shown: BTreeMap<usize, Vec<Picture>>,
    /// The pictures that go into one file.
    grid: Option<Vec<Picture>>,
    saved: usize,
    failure: Option<anyhow::Error>,
}

impl<'a> Work<'a> {
    /// Before the first step.
    pub fn new(
        (settings, record): (&'a Settings, &'a Record),
        (output, steps): (&'a Output, Option<&'a NewFolder>),
        interrupt: &'a Interrupt,
        grid: bool,
        quiet: bool,
    ) -> Self {
        Self {
            settings,
            record,
            output,
            steps,
            interrupt,
            progress: Progress::new(quiet),
            previews: Previews::default(),
            shown: BTreeMap::new(),
            grid: grid.then(Vec::new),
            saved: 0,
            failure: None,
        }
    }

    /// What was warned of.
    pub fn warnings(&self) -> Vec<String> {
        self.progress.warnings()
    }

    /// Makes the pictures and writes their files.
    pub fn run(&mut self, model: &LatentDiffusion) -> anyhow::Result<Seconds> {
        let seconds = self.draw(model)?;
        self.save_grid()?;
        Ok(seconds)
    }

    fn draw(&mut self, model: &LatentDiffusion) -> anyhow::Result<Seconds> {
        let (settings, record) = (self.settings, self.record);
        let result = std::thread::scope(|scope| {
            let mut hashes = false;
            model.run(settings, &mut |event| {
                // The weights' hash goes into the pictures. It can wait until there is something to see, and is then ready
                // before the first picture as a rule.
                if matches!(event, Event::Step { .. }) && !std::mem::replace(&mut hashes, true) {
                    scope.spawn(|| record.hash_weights().is_ok());
                }
                self.event(event)
            })
        });
        self.progress.finish();
        match (self.failure.take(), result) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Cancelled)) if self.saved == settings.request.num_images => Ok(Seconds::default()),
            (None, Err(Error::Cancelled)) => {
                let of = settings.request.num_images;
                let saved = if self.grid.is_some() { 0 } else { self.saved };
                Err(Stopped(format!("stopped; {saved} of {of} pictures were saved")).into())
            }
            (None, result) => Ok(result?),
        }
    }

    fn event(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Warning(text) => self.progress.warning(&text),
            Event::Step { done, steps, batch, batches, x0 } => {
                self.progress.stage("denoising");
                self.progress.steps(batch * steps + done, batches * steps);
                if done == 1 {
                    self.previews.clear();
                }
                if let (Some(x0), Some(_)) = (x0, self.steps) {
                    self.previews.push(x0);
                }
            }
            Event::Preview { index, done, picture } => {
                if let Err(error) = self.preview(index, done, picture) {
                    self.failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            Event::Decoding { .. } => self.progress.stage("decoding"),
            Event::Picture { .. } => {
                if let Err(error) = self.save(&event) {
                    self.failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            _ => {}
        }
        self.interrupt.flow()
    }

    fn save(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        let Event::Picture { index, seed, picture, decoded } = event else { return Ok(()) };
        if let Some(grid) = &mut self.grid {
            grid.push(self.record.scaled(picture)?.to_picture());
            self.saved += 1;
            return Ok(());
        }
        let output = self.output;
        let scaled = self.record.scaled(picture)?;
        let path = output.write(*index, &scaled.encode(output.format(), &self.texts(*seed)?)?)?;
        self.saved += 1;
        if !output.is_stdout() {
            self.progress.line(&format!("saved {} (seed {seed})", path.display()));
        }
        let (Some(folder), Some((latents, decoded))) = (self.steps, decoded) else { return Ok(()) };

        let prefix = self.prefix(*index);
        let previews = match self.shown.remove(index) {
            Some(shown) => shown,
            None => {
                let previews = self.previews.pictures(index % self.settings.request.batch_size, latents, decoded)?;
                for (i, preview) in previews.iter().enumerate() {
                    folder.write(&format!("{prefix}step-{:03}.png", i + 1), &encode_png(preview, &[])?)?;
                }
                previews
            }
        };
        // The finished picture stays for a moment before the animation starts again.
        let mut frames: Vec<_> = previews.iter().collect();
        frames.extend([*decoded; LAST_FRAME_TIMES]);
        let frames: Vec<_> = frames.into_iter().cloned().collect();
        folder.write(&format!("{prefix}steps.png"), &encode_animation(&frames, FRAME_MILLISECONDS)?)?;
        self.progress.line(&format!("saved {} previews in {}", previews.len(), folder.path().display()));
        Ok(())
    }

    /// Writes the file with all pictures, if that was asked for.
    fn save_grid(&mut self) -> anyhow::Result<()> {
        let Some(pictures) = self.grid.take() else { return Ok(()) };
        let columns = (pictures.len() as f64).sqrt().ceil() as usize;
        let grid = Photo::from(&Picture::grid(&pictures, columns, GRID_GAP)?);
        // Its settings make the first picture, and no picture that looks like it.
        let mut texts = self.texts(self.settings.request.seed)?;
        texts.retain(|text| text.keyword == TextChunk::PARAMETERS);
        let path = self.output.write(0, &grid.encode(self.output.format(), &texts)?)?;
        if !self.output.is_stdout() {
            self.progress.line(&format!("saved {} ({} pictures)", path.display(), pictures.len()));
        }
        Ok(())
    }

    /// What the picture of a seed says of itself, once the weights' sums are known.
    fn texts(&self, seed: u64) -> anyhow::Result<Vec<TextChunk>> {
        self.record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
        Ok(self.record.chunks(seed))
    }

    /// Writes a preview while the picture is being made.
    fn preview(&mut self, index: usize, done: usize, picture: &Picture) -> anyhow::Result<()> {
        let Some(folder) = self.steps else { return Ok(()) };
        folder.write(&format!("{}step-{done:03}.png", self.prefix(index)), &encode_png(picture, &[])?)?;
        self.shown.entry(index).or_default().push(picture.clone());
        Ok(())
    }

    /// What the names of a picture's previews start with.
    fn prefix(&self, index: usize) -> String {
        if self.settings.request.num_images > 1 { format!("{index}-") } else { String::new() }
    }
}

/// Pixels between the pictures of a grid.
const GRID_GAP: usize = 2;

/// How long a step is shown in the animation.
const FRAME_MILLISECONDS: u16 = 120;

/// For how many frames the finished picture is shown.
const LAST_FRAME_TIMES: usize = 8;

/// What is printed of a run as JSON.
pub fn summary(settings: &Settings, record: &Record, output: &Output, seconds: Seconds, total: f64) -> Value {
    let seeds: Vec<u64> = settings.seed_batches().concat();
    json!({
        "files": output.paths().iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "seed": settings.request.seed,
        "seeds": seeds,
        "settings": record.json(settings.request.seed),
        "seconds": {
            "load": seconds.load,
            "encode": seconds.encode,
            "denoise": seconds.denoise,
            "decode": seconds.decode,
            "total": total,
        },
        "peak_memory_mb": tweedie_pipelines::memory::peak_mb(),
    })
}
