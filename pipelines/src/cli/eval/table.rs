//! Scores as a table and as JSON.

use serde_json::{Map, Value, json};
use tweedie::training::tasks::{JudgeAccuracy, Measure, Score};
use tweedie_pipelines::PromptScores;

/// What stands above a column.
fn heading(measure: Measure) -> String {
    measure.name().replace('_', " ")
}

/// A row for each kind of prompts, for all, and for the judge itself; a column for each question that arose.
pub fn as_text(scores: &PromptScores, judge: Option<&JudgeAccuracy>) -> String {
    let measures: Vec<Measure> =
        Measure::ALL.into_iter().filter(|&measure| scores.overall.share(measure).total > 0).collect();
    let mut rows = vec![std::iter::once(String::new()).chain(measures.iter().map(|&m| heading(m))).collect::<Vec<_>>()];
    let mut row = |name: &str, score: &Score| {
        let cell = |&measure: &Measure| match score.share(measure) {
            share if share.total > 0 => format!("{:.1} % of {}", 100.0 * share.accuracy(), share.total),
            _ => "-".to_owned(),
        };
        rows.push(std::iter::once(name.to_owned()).chain(measures.iter().map(cell)).collect());
    };
    scores.kinds.iter().filter(|(kind, _)| !kind.is_empty()).for_each(|(kind, score)| row(kind, score));
    row("all", &scores.overall);
    if let Some(JudgeAccuracy { raw, decoded }) = judge {
        row("the judge on real pictures", raw);
        decoded.iter().for_each(|score| row("... through the autoencoder", score));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=measures.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells =
            cells.map(|(i, (cell, &width))| if i == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The same as fields: `overall`, `kinds`, and `judge`, how often the judge is right itself.
pub fn fields(scores: &PromptScores, judge: Option<&JudgeAccuracy>) -> Map<String, Value> {
    let kinds: Map<String, Value> =
        scores.kinds.iter().map(|(kind, score)| (kind.clone(), score.fields().into())).collect();
    let fields = [
        ("overall", Value::Object(scores.overall.fields())),
        ("kinds", Value::Object(kinds)),
        ("judge", judge.map_or_else(|| json!(null), JudgeAccuracy::fields)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(correct: usize, total: usize) -> Option<Score> {
        let share = json!({"correct": correct, "total": total});
        Score::from_fields(&json!({"pictures": total, "concept": share, "joint": {"correct": 1, "total": 8}}))
    }

    #[test]
    fn a_row_for_each_kind_and_a_number_beside_each_figure() -> Result<(), &'static str> {
        let (seen, all) = (score(2, 3).ok_or("a score")?, score(3, 8).ok_or("a score")?);
        let raw =
            Score::from_fields(&json!({"pictures": 5, "concept": {"correct": 5, "total": 5}})).ok_or("a score")?;
        let scores = PromptScores { overall: all, kinds: vec![("seen".into(), seen)] };
        let judge = JudgeAccuracy { raw, decoded: None };
        let want = [
            "                                concept        joint",
            "seen                        66.7 % of 3  12.5 % of 8",
            "all                         37.5 % of 8  12.5 % of 8",
            "the judge on real pictures  100.0 % of 5            -",
        ];
        let columns = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let text = as_text(&scores, Some(&judge));
        assert_eq!(text.lines().map(columns).collect::<Vec<_>>(), want.map(columns));
        // Figures end in one column.
        let ends: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert_eq!(fields(&scores, Some(&judge))["kinds"]["seen"]["concept"]["correct"], 2);
        Ok(())
    }
}
