//! What was perhaps meant by a name that is none of those that there are.

use strsim::jaro_winkler;

/// Above this likeness (1 is equal) a name is offered in the place of another.
const ALIKE: f64 = 0.8;

/// The name that is most like another one, if any is like it at all.
pub fn most_alike<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (likeness, nearest) =
        known.map(|known| (jaro_winkler(name, known), known)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > ALIKE).then_some(nearest)
}
