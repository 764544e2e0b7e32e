//! What plots of experiments show alike.

use super::Figures;
use tweedie::images::Series;

/// A point for each row, of two of its figures, under its name.
pub fn points<R>(rows: &[(R, Figures)], [x, y]: [&str; 2], name: impl Fn(&R) -> String) -> Vec<Series> {
    let point = |figures: &Figures| Some((figures.get(x)?, figures.get(y)?));
    let marked = rows.iter().map(|(row, figures)| Series::marked(name(row), Vec::from_iter(point(figures)), false));
    marked.collect()
}

/// A figure over a setting of the rows: those of one name are one line.
pub fn lines<R>(
    rows: &[(R, Figures)],
    figure: &str,
    x: impl Fn(&R) -> f64,
    name: impl Fn(&R) -> String,
) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for (row, figures) in rows {
        let Some(value) = figures.get(figure) else { continue };
        let (name, point) = (name(row), (x(row), value));
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Series::marked(name, vec![point], true)),
        }
    }
    lines
}

/// The lines with that of real digits, from end to end of them.
pub fn with_real_digits(mut lines: Vec<Series>, figure: Option<f64>) -> Vec<Series> {
    let all = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
    let ends = [all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max)];
    lines.extend(figure.map(|figure| Series::line("real digits", ends.map(|x| (x, figure)).to_vec())));
    lines
}
