//! Rows as a table, for a terminal and as Markdown.

use serde_json::{Map, Value};

/// A column of a table: a setting of the rows, or a figure with the interval that holds it, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The name of the setting or figure.
    pub key: &'static str,
    /// What stands above.
    pub title: &'static str,
    /// Digits after the point.
    pub places: usize,
}

impl Column {
    /// The Frechet inception distance.
    pub const FID: Self = Self::figure("fid", "FID", 1);
    /// The kernel inception distance.
    pub const KID: Self = Self::figure("kid", "KID", 2);
    /// The inception score.
    pub const IS: Self = Self::figure("is", "IS", 2);
    /// How many samples are like real ones.
    pub const PRECISION: Self = Self::figure("precision", "precision", 3);
    /// How many real ones are like samples.
    pub const RECALL: Self = Self::figure("recall", "recall", 3);
    /// The loss at the end of the training.
    pub const LOSS: Self = Self::figure("loss", "loss", 4);
    /// How long the row took.
    pub const SECONDS: Self = Self::figure("seconds", "seconds", 0);
    /// How long the training took.
    pub const TRAINING_SECONDS: Self = Self::figure("training_seconds", "seconds of training", 0);

    /// A setting, as it is.
    pub const fn setting(key: &'static str) -> Self {
        Self { key, title: key, places: 0 }
    }

    /// A figure.
    pub const fn figure(key: &'static str, title: &'static str, places: usize) -> Self {
        Self { key, title, places }
    }

    /// What a row has in this column: a dash where it has nothing.
    fn cell(&self, settings: &Value, figures: &Map<String, Value>) -> String {
        match (&settings[self.key], figures.get(self.key).and_then(Value::as_f64)) {
            (Value::Null, Some(figure)) => self.number(figure) + &self.interval(figures).unwrap_or_default(),
            (Value::Null, None) => "-".into(),
            (Value::String(text), _) => text.clone(),
            (other, _) => other.to_string(),
        }
    }

    fn number(&self, value: f64) -> String {
        format!("{value:.*}", self.places)
    }

    fn interval(&self, figures: &Map<String, Value>) -> Option<String> {
        let interval = figures.get(&format!("{}_interval", self.key))?;
        Some(format!(" ({} to {})", self.number(interval[0].as_f64()?), self.number(interval[1].as_f64()?)))
    }
}

/// The cells of rows, the titles first.
pub fn cells<'a>(
    columns: &[Column],
    rows: impl Iterator<Item = (&'a Value, &'a Map<String, Value>)>,
) -> Vec<Vec<String>> {
    let titles = columns.iter().map(|column| column.title.to_owned()).collect();
    let cells = rows.map(|(settings, figures)| columns.iter().map(|column| column.cell(settings, figures)).collect());
    std::iter::once(titles).chain(cells).collect()
}

/// Columns below each other.
pub fn as_text(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The same as Markdown.
pub fn as_markdown(cells: &[Vec<String>]) -> String {
    let mut lines: Vec<String> = cells.iter().map(|row| format!("| {} |", row.join(" | "))).collect();
    lines.insert(1.min(lines.len()), format!("|{}", "---|".repeat(cells.first().map_or(0, Vec::len))));
    lines.join("\n")
}
