//! What a judge tells apart, and the classes of what a picture shows.

use super::Shown;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// What a judge says of a picture, one answer each.
///
/// Concepts have two slots, the left or upper one first: so two pictures of the same things in another order differ, which a set of
/// concepts would not tell, and each slot is one choice, which needs no threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgeHead {
    /// The concept, of two the left or upper one.
    First,
    /// The other concept, or that there is none.
    Second,
    /// What is behind them.
    Background,
    /// How they are drawn.
    Style,
    /// Where a single concept is.
    Position,
    /// How large it is.
    Size,
    /// How two are arranged.
    Relation,
}

impl JudgeHead {
    /// All, in the order of [`Labels`] and [`Seen`].
    pub const ALL: [Self; 7] =
        [Self::First, Self::Second, Self::Background, Self::Style, Self::Position, Self::Size, Self::Relation];
}

/// Of each head the class that a picture should have, if that can be said.
pub type Labels = [Option<u32>; JudgeHead::ALL.len()];

/// Of each head the class that a judge takes a picture to have.
pub type Seen = [u32; JudgeHead::ALL.len()];

/// What null stands for, where something is said of what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsaid {
    /// Of a picture: the only concept is in the middle, a second one is not there.
    IsUsual,
    /// Of a prompt: anything will do.
    IsOpen,
}

/// The position of a single concept that has none.
const MIDDLE: &str = "middle";
/// The arrangement of one concept.
const ALONE: &str = "none";
/// The relation of two concepts that are next to each other, whichever is on the left.
const BESIDE: &str = "beside";
/// The relation that says which one is.
const LEFT: &str = "left";

/// The names of the classes of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JudgeClasses {
    /// Concepts. The second slot has one class more, the last: that there is none.
    pub concepts: Vec<String>,
    /// Backgrounds.
    pub background: Vec<String>,
    /// Styles.
    pub style: Vec<String>,
    /// Positions, the middle first.
    pub position: Vec<String>,
    /// Sizes.
    pub size: Vec<String>,
    /// Arrangements, that of one concept first. What is `left` is `beside` here: the pictures are the same, and who is on the left
    /// is said by the slots.
    pub relation: Vec<String>,
}

/// Whether a relation says which of two concepts is where.
pub fn is_ordered(relation: &str) -> bool {
    relation != BESIDE
}

/// What can be seen of a relation, whichever concept is where.
fn arrangement(relation: &str) -> &str {
    if relation == LEFT { BESIDE } else { relation }
}

impl JudgeClasses {
    /// All classes of some pictures, in the order of their names.
    pub fn of<'a>(shown: impl IntoIterator<Item = &'a Shown> + Clone) -> Self {
        let names = |get: &dyn Fn(&'a Shown) -> Option<&'a String>| -> BTreeSet<&'a str> {
            shown.clone().into_iter().filter_map(get).map(String::as_str).collect()
        };
        let list = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let with_usual = |usual: &'static str, names: BTreeSet<&str>| {
            let others = names.into_iter().filter(|name| *name != usual);
            std::iter::once(usual).chain(others).map(str::to_owned).collect::<Vec<_>>()
        };
        let concepts = shown.clone().into_iter().flat_map(|shown| shown.concepts.iter().map(String::as_str));
        let relations = names(&|shown| shown.relation.as_ref()).into_iter().map(arrangement).collect();
        Self {
            concepts: list(concepts.collect()),
            background: list(names(&|shown| shown.background.as_ref())),
            style: list(names(&|shown| shown.style.as_ref())),
            position: with_usual(MIDDLE, names(&|shown| shown.position.as_ref())),
            size: list(names(&|shown| shown.size.as_ref())),
            relation: with_usual(ALONE, relations),
        }
    }

    /// The names of the classes of a kind, as `config.json` has them.
    fn lists(&self) -> [(&'static str, &Vec<String>); 6] {
        [
            ("concepts", &self.concepts),
            ("background", &self.background),
            ("style", &self.style),
            ("position", &self.position),
            ("size", &self.size),
            ("relation", &self.relation),
        ]
    }

    /// The lists of names as JSON.
    pub fn fields(&self) -> Map<String, Value> {
        self.lists().into_iter().map(|(name, list)| (name.to_owned(), list.clone().into())).collect()
    }

    /// What [`Self::fields`] gave.
    ///
    /// # Errors
    /// If a list is not there, has something else than names or has one twice; its name comes first.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Self, (&'static str, &'static str)> {
        let list = |field: &'static str| {
            let names = fields.get(field).and_then(Value::as_array);
            let names = names.and_then(|list| list.iter().map(|name| name.as_str().map(str::to_owned)).collect());
            let names: Vec<String> = names.ok_or((field, "it must be a list of names"))?;
            match names.iter().collect::<BTreeSet<_>>().len() == names.len() {
                true => Ok(names),
                false => Err((field, "each name stands there once")),
            }
        };
        Ok(Self {
            concepts: list("concepts")?,
            background: list("background")?,
            style: list("style")?,
            position: list("position")?,
            size: list("size")?,
            relation: list("relation")?,
        })
    }

    /// How many classes a head tells apart; at least one, so that a head of what is never said is there too.
    pub fn count(&self, head: JudgeHead) -> usize {
        let names = match head {
            JudgeHead::First => self.concepts.len(),
            JudgeHead::Second => self.concepts.len() + 1,
            JudgeHead::Background => self.background.len(),
            JudgeHead::Style => self.style.len(),
            JudgeHead::Position => self.position.len(),
            JudgeHead::Size => self.size.len(),
            JudgeHead::Relation => self.relation.len(),
        };
        names.max(1)
    }

    /// The class of the second slot that says that there is nothing.
    pub fn nothing(&self) -> u32 {
        self.concepts.len() as u32
    }

    /// The number of a concept's look in a style, among those of all concepts in all styles.
    pub fn look(&self, concept: u32, style: u32) -> u32 {
        concept * self.count(JudgeHead::Style) as u32 + style
    }

    /// The looks of both slots, where both their concepts and the style are known, or there is nothing; and the labels that these
    /// leave open.
    pub fn looks(&self, labels: &Labels) -> ([Option<u32>; 2], Labels) {
        let [first, second, background, style, position, size, relation] = *labels;
        let look = |concept: Option<u32>| concept.zip(style).map(|(concept, style)| self.look(concept, style));
        let nothing = second.filter(|&second| second == self.nothing()).map(|second| self.look(second, 0));
        let looks = [look(first), nothing.or_else(|| look(second))];
        let open = |label: Option<u32>, look: Option<u32>| label.filter(|_| look.is_none());
        let rest = [open(first, looks[0]), open(second, looks[1]), background, open(style, looks[0])];
        let [first, second, background, style] = rest;
        (looks, [first, second, background, style, position, size, relation])
    }

    /// The classes of what is shown, and what is said that is no class here: the name of the field and the value.
    pub fn labels(&self, shown: &Shown, unsaid: Unsaid) -> (Labels, Vec<(&'static str, String)>) {
        let mut unknown = Vec::new();
        let mut class = |field: &'static str, names: &[String], name: &str, said: &str| {
            let class = names.iter().position(|known| known == name).map(|class| class as u32);
            if class.is_none() {
                unknown.push((field, said.to_owned()));
            }
            class
        };
        let usual = unsaid == Unsaid::IsUsual;
        let mut named = |field, names, name: &Option<String>, usual: Option<&str>| match name.as_deref().or(usual) {
            Some(name) => class(field, names, name, name),
            None => None,
        };
        let background = named("background", &self.background, &shown.background, None);
        let style = named("style", &self.style, &shown.style, None);
        // Two concepts have no position of their own.
        let single = shown.concepts.len() == 1;
        let position = named("position", &self.position, &shown.position, (usual && single).then_some(MIDDLE));
        let size = named("size", &self.size, &shown.size, None);
        let relation = match shown.relation.as_deref() {
            Some(said) => class("relation", &self.relation, arrangement(said), said),
            None if usual && single => class("relation", &self.relation, ALONE, ALONE),
            None => None,
        };
        let mut slots = shown.concepts.iter().map(|name| class("concepts", &self.concepts, name, name));
        let first = slots.next().flatten();
        let second = slots.next().unwrap_or(Some(self.nothing()));
        ([first, second, background, style, position, size, relation], unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(concepts: &[&str], position: Option<&str>, relation: Option<&str>) -> Shown {
        let owned = |name: Option<&str>| name.map(str::to_owned);
        Shown {
            concepts: concepts.iter().map(|&name| name.to_owned()).collect(),
            background: Some("red".into()),
            style: None,
            position: owned(position),
            size: Some("small".into()),
            relation: owned(relation),
        }
    }

    #[test]
    fn classes_are_those_of_the_pictures() -> Result<(), (&'static str, &'static str)> {
        let rows = [
            shown(&["b", "a"], None, Some("left")),
            shown(&["c"], Some("left"), None),
            shown(&["a", "c"], None, Some("above")),
            shown(&["a", "c"], None, Some("beside")),
        ];
        let classes = JudgeClasses::of(&rows);
        assert_eq!(classes.concepts, ["a", "b", "c"]);
        assert_eq!((classes.background.as_slice(), classes.style.len()), (["red".to_owned()].as_slice(), 0));
        assert_eq!(
            (classes.position.join(" "), classes.relation.join(" ")),
            ("middle left".into(), "none above beside".into())
        );
        assert_eq!(JudgeHead::ALL.map(|head| classes.count(head)), [3, 4, 1, 1, 2, 1, 3]);
        assert_eq!(JudgeClasses::from_fields(&classes.fields())?, classes);
        Ok(())
    }

    /// One look is right where concept and style are known, and says both; that there is nothing has no style.
    #[test]
    fn a_look_is_a_concept_in_a_style() {
        let named = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let classes =
            JudgeClasses { concepts: named(&["a", "b", "c"]), style: named(&["x", "y"]), ..Default::default() };
        let (red, said) = (Some(7), Some(9));
        let labels = |first, second, style| [first, second, red, style, None, said, None];
        let rest = |first, second, style| labels(first, second, style);
        assert_eq!(classes.looks(&labels(Some(2), Some(0), Some(1))), ([Some(5), Some(1)], rest(None, None, None)));
        assert_eq!(classes.looks(&labels(Some(1), Some(3), Some(0))), ([Some(2), Some(6)], rest(None, None, None)));
        // A style alone, or a concept alone, is all that can be said.
        assert_eq!(classes.looks(&labels(None, Some(3), Some(0))), ([None, Some(6)], rest(None, None, Some(0))));
        assert_eq!(classes.looks(&labels(Some(1), Some(2), None)), ([None, None], rest(Some(1), Some(2), None)));
        let looks: BTreeSet<u32> = (0..3).flat_map(|c| [classes.look(c, 0), classes.look(c, 1)]).collect();
        assert_eq!(looks, (0..6).collect());
    }

    /// Null is a class of a picture and nothing of a prompt; what is not known is named and has no class.
    #[test]
    fn labels_are_the_classes_of_what_is_said() {
        let rows = [shown(&["a", "b"], None, Some("left")), shown(&["c"], Some("left"), None)];
        let classes = JudgeClasses::of(&rows);
        let picture = |shown: &Shown| classes.labels(shown, Unsaid::IsUsual);
        let prompt = |shown: &Shown| classes.labels(shown, Unsaid::IsOpen);
        let some = Some;
        let pair = [some(0), some(1), some(0), None, None, some(0), some(1)];
        assert_eq!(picture(&rows[0]), (pair, vec![]));
        assert_eq!(prompt(&rows[0]), (pair, vec![]));
        let single = shown(&["c"], None, None);
        assert_eq!(picture(&single).0, [some(2), some(3), some(0), None, some(0), some(0), some(0)]);
        assert_eq!(prompt(&single).0, [some(2), some(3), some(0), None, None, some(0), None]);
        let strange = shown(&["a", "d"], None, Some("inside"));
        let (labels, unknown) = prompt(&strange);
        assert_eq!(labels, [some(0), None, some(0), None, None, some(0), None]);
        assert_eq!(unknown, [("relation", "inside".to_owned()), ("concepts", "d".to_owned())]);
    }
}
