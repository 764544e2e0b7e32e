//! The rows of an experiment, in a file from which it goes on.

use super::arguments::settings;
use super::progress::{Progress, RowProgress};
use super::table::{as_markdown, as_text, cells};
use super::{Arguments, Experiment, Judge, Outcome};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::files::replace_file;
use tweedie::images::{Plot, encode_png};
use tweedie::metrics::Figure;

const FILE: &str = "results.json";

/// What was measured of a row, by name.
#[derive(Debug, Clone, Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Adds a figure with its interval.
    #[must_use]
    pub fn with(self, name: &str, figure: Figure) -> Self {
        let mut figures = self.with_number(name, figure.value);
        if let Some(interval) = figure.interval {
            figures.0.insert(format!("{name}_interval"), json!([interval.low, interval.high]));
        }
        figures
    }

    /// Adds a number.
    #[must_use]
    pub fn with_number(mut self, name: &str, value: f64) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Adds all of others.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// A figure, if it was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.as_f64()
    }
}

/// The results of an experiment so far.
#[derive(Debug)]
pub struct Results {
    experiment: Experiment,
    folder: PathBuf,
    settings: Value,
    /// The figures of real digits, which no model is better than.
    floor: Option<Figures>,
    rows: Vec<(Value, Figures)>,
    /// Settings of which a row must have all to be measured, if there are any.
    wanted: Vec<Vec<String>>,
    /// The settings of all rows that there are, and whether one of them is wanted.
    offered: Vec<String>,
    met_any: bool,
}

impl Results {
    /// Starts an experiment in a folder, or goes on with the one that is there. `settings` are those of all rows.
    ///
    /// # Errors
    /// If there are results and they are not to be gone on with, they have other settings, or the folder cannot be written.
    pub fn open(experiment: Experiment, arguments: &Arguments, settings: Value) -> Outcome<Self> {
        let folder = arguments.output.clone();
        let mut results = Self {
            experiment,
            folder,
            settings,
            floor: None,
            rows: Vec::new(),
            wanted: arguments.rows.clone(),
            offered: Vec::new(),
            met_any: false,
        };
        let path = results.folder.join(FILE);
        if path.exists() {
            if !arguments.resume {
                let path = path.display();
                return Err(format!("{path} is there; --resume goes on with it, or choose another --output").into());
            }
            results.read(&path)?;
        }
        std::fs::create_dir_all(&results.folder)?;
        results.write()?;
        Ok(results)
    }

    /// The folder of training runs.
    pub fn runs(&self) -> PathBuf {
        self.folder.join("runs")
    }

    fn read(&mut self, path: &Path) -> Outcome {
        let file: Value = serde_json::from_slice(&std::fs::read(path)?)
            .map_err(|e| format!("{} is damaged ({e}); choose another --output", path.display()))?;
        let same = |name: &str, was: &Value, is: &Value| match was == is {
            true => Ok(()),
            false => Err(format!(
                "{} has {name} {was}, and now it is {is}; take the same, or choose another --output",
                path.display()
            )),
        };
        same("the experiment", &file["experiment"], &self.experiment.name.into())?;
        for (name, is) in self.settings.as_object().into_iter().flatten() {
            same(name, &file["settings"][name], is)?;
        }
        let figures = |value: &Value| value.as_object().cloned().map(Figures);
        self.floor = figures(&file["floor"]);
        for row in file["rows"].as_array().into_iter().flatten() {
            self.rows.extend(figures(&row["figures"]).map(|figures| (row["settings"].clone(), figures)));
        }
        Ok(())
    }

    fn write(&self) -> tweedie::Result<()> {
        let rows = self.rows.iter().map(|(settings, figures)| json!({"settings": settings, "figures": figures.0}));
        let file = json!({
            "experiment": self.experiment.name,
            "settings": self.settings,
            "floor": self.floor.as_ref().map(|figures| &figures.0),
            "rows": rows.collect::<Vec<_>>(),
        });
        replace_file(&self.folder.join(FILE), format!("{file:#}\n").as_bytes())
    }

    /// Measures what real digits have for figures, if that is not known yet.
    ///
    /// # Errors
    /// If they cannot be read or judged.
    pub fn measure_floor(&mut self, judge: &Judge) -> Outcome {
        if self.floor.is_none() {
            self.floor = Some(judge.floor()?);
            self.write()?;
        }
        Ok(())
    }

    /// Measures rows that are wanted and not done yet, each of which takes so much `work`, and gives all that are done with their
    /// figures.
    ///
    /// # Errors
    /// Whatever `measure` reports, or if results cannot be written; rows that were done are not lost.
    pub fn measure<R: Serialize>(
        &mut self,
        rows: Vec<R>,
        work: impl Fn(&R) -> f64,
        mut measure: impl FnMut(&R, &mut RowProgress<'_>) -> Outcome<Figures>,
    ) -> Outcome<Vec<(R, Figures)>> {
        let rows = self.chosen(rows)?;
        let (count, mut all) = (rows.len(), Vec::new());
        let mut progress = Progress::new(rows.iter().map(&work).sum());
        for (number, row) in rows.into_iter().enumerate() {
            let settings = serde_json::to_value(&row)?;
            let name = format!("row {} of {count}: {}", number + 1, in_words(&settings));
            let done = self.rows.iter().find(|(of, _)| *of == settings).map(|(_, figures)| figures.clone());
            if let Some(figures) = done {
                progress.skip(work(&row));
                progress.line(&format!("{name}: done before"));
                all.push((row, figures));
                continue;
            }
            let start = Instant::now();
            let mut of_row = progress.row(name.clone(), work(&row));
            let figures = measure(&row, &mut of_row)?;
            of_row.finish();
            let figures = figures.with_number("seconds", start.elapsed().as_secs_f64());
            progress.line(&format!("{name}: done in {:.0} s", start.elapsed().as_secs_f64()));
            self.rows.push((settings, figures.clone()));
            self.write()?;
            all.push((row, figures));
        }
        Ok(all)
    }

    /// The rows to go through: those that are wanted, and those that are done.
    fn chosen<R: Serialize>(&mut self, rows: Vec<R>) -> Outcome<Vec<R>> {
        let mut chosen = Vec::with_capacity(rows.len());
        for row in rows {
            let of_row = serde_json::to_value(&row)?;
            let words = in_words(&of_row);
            let its = settings(&words);
            let has_all = |wanted: &Vec<String>| wanted.iter().all(|setting| its.contains(setting));
            let is_wanted = self.wanted.is_empty() || self.wanted.iter().any(has_all);
            self.met_any |= is_wanted;
            if is_wanted || self.rows.iter().any(|(done, _)| *done == of_row) {
                chosen.push(row);
            }
            self.offered.push(words);
        }
        Ok(chosen)
    }

    /// A figure of real digits.
    pub fn floor(&self, name: &str) -> Option<f64> {
        self.floor.as_ref()?.get(name)
    }

    /// Prints the table, and writes it and the plots into the folder.
    ///
    /// # Errors
    /// If no row is wanted, or something cannot be drawn or written.
    pub fn finish(&self, plots: &[(&str, Plot)]) -> Outcome {
        if !self.met_any {
            return Err(format!("no row has what --rows says; there are: {}", self.offered.join("; ")).into());
        }
        let real = json!({self.experiment.columns.first().map_or("", |column| column.key): "real digits"});
        let floor = self.floor.iter().map(|figures| (&real, &figures.0));
        let rows = self.rows.iter().map(|(settings, figures)| (settings, &figures.0));
        let cells = cells(self.experiment.columns, floor.chain(rows));
        let about = in_words(&self.settings);
        println!("{}: {about}\n\n{}", self.experiment.title, as_text(&cells));
        let mut markdown = format!("# {}\n\n{about}.\n\n{}\n", self.experiment.title, as_markdown(&cells));
        for (name, plot) in plots {
            // Of rows that are not measured yet there is nothing to draw.
            let mut plot = plot.clone();
            plot.series.retain(|series| !series.points.is_empty());
            if plot.series.is_empty() {
                continue;
            }
            replace_file(&self.folder.join(name), &encode_png(&plot.draw()?, &[])?)?;
            markdown += &format!("\n![{}]({name})\n", plot.title);
        }
        replace_file(&self.folder.join("results.md"), markdown.as_bytes())?;
        println!("\nsaved in {}", self.folder.display());
        Ok(())
    }
}

/// Settings on one line.
fn in_words(settings: &Value) -> String {
    let given = settings.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let words = given.map(|(name, value)| match value {
        Value::String(text) => text.clone(),
        value => format!("{} {value}", name.replace('_', " ")),
    });
    words.collect::<Vec<_>>().join(", ")
}
