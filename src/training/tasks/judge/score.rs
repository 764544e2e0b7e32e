//! How often pictures show what they should, by what a judge sees.

use crate::models::judge::{JudgeClasses, JudgeHead, Labels, Seen, Shown, Unsaid, is_ordered};
use serde_json::{Map, Value, json};

/// A question that a picture is right or wrong about. One that does not arise is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Of one concept asked for: it is seen, and no second one.
    Concept,
    /// Of two: both are seen.
    Both,
    /// Of two: both are seen, the first one to the left of the second or above it.
    InOrder,
    /// The background.
    Background,
    /// The style.
    Style,
    /// Where the concept is.
    Position,
    /// How large it is.
    Size,
    /// Whether two concepts are beside or above each other; and in this order, if it was said.
    Relation,
    /// All that was asked for, at once: for two concepts both of them, in the order that their relation says, if any.
    Joint,
}

impl Measure {
    /// All, in the order in which they are listed.
    pub const ALL: [Self; 9] = [
        Self::Concept,
        Self::Both,
        Self::InOrder,
        Self::Background,
        Self::Style,
        Self::Position,
        Self::Size,
        Self::Relation,
        Self::Joint,
    ];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Concept => "concept",
            Self::Both => "both_concepts",
            Self::InOrder => "in_order",
            Self::Background => "background",
            Self::Style => "style",
            Self::Position => "position",
            Self::Size => "size",
            Self::Relation => "relation",
            Self::Joint => "joint",
        }
    }
}

/// What a picture is asked to show, as a judge knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    labels: Labels,
    is_pair: bool,
    is_ordered: bool,
    nothing: u32,
    /// What the judge does not know: the name of the field and the value. Nothing is counted that depends on it.
    pub unknown: Vec<(&'static str, String)>,
}

impl Asked {
    /// What is asked for by `shown`.
    pub fn new(shown: &Shown, classes: &JudgeClasses, unsaid: Unsaid) -> Self {
        let (labels, unknown) = classes.labels(shown, unsaid);
        Self {
            labels,
            is_pair: shown.concepts.len() == 2,
            is_ordered: shown.relation.as_deref().is_some_and(is_ordered),
            nothing: classes.nothing(),
            unknown,
        }
    }

    /// Whether a picture is right about a question; nothing if it does not arise, or the judge cannot say.
    pub fn is_right(&self, measure: Measure, seen: &Seen) -> Option<bool> {
        let label = |head: JudgeHead| self.labels[head as usize];
        let same = |head: JudgeHead| label(head).map(|class| class == seen[head as usize]);
        let asked = label(JudgeHead::First).zip(label(JudgeHead::Second));
        let found = (seen[JudgeHead::First as usize], seen[JudgeHead::Second as usize]);
        let pair = asked.filter(|_| self.is_pair);
        let in_order = pair.map(|asked| asked == found);
        match measure {
            Measure::Concept => asked.filter(|_| !self.is_pair).map(|(first, _)| found == (first, self.nothing)),
            Measure::Both => pair.map(|(first, second)| found == (first, second) || found == (second, first)),
            Measure::InOrder => in_order,
            Measure::Background => same(JudgeHead::Background),
            Measure::Style => same(JudgeHead::Style),
            Measure::Position => same(JudgeHead::Position),
            Measure::Size => same(JudgeHead::Size),
            Measure::Relation if self.is_ordered => {
                same(JudgeHead::Relation).zip(in_order).map(|(arranged, ordered)| arranged && ordered)
            }
            Measure::Relation => same(JudgeHead::Relation),
            Measure::Joint if !self.unknown.is_empty() => None,
            Measure::Joint => {
                // Who is on the left counts where a relation says it, and is in that answer.
                let parts = Measure::ALL.into_iter().filter(|part| ![Measure::InOrder, Measure::Joint].contains(part));
                let answers: Vec<bool> = parts.filter_map(|part| self.is_right(part, seen)).collect();
                (!answers.is_empty()).then(|| answers.iter().all(|&right| right))
            }
        }
    }
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Pictures that are right.
    pub correct: usize,
    /// Pictures of which it was asked.
    pub total: usize,
}

impl Share {
    /// The share, 0 to 1; 0 of none.
    pub fn accuracy(self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }
}

/// How many pictures are right about each question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Score {
    /// Pictures that were looked at.
    pub pictures: usize,
    shares: [Share; Measure::ALL.len()],
}

impl Score {
    /// Adds a picture.
    pub fn add(&mut self, asked: &Asked, seen: &Seen) {
        self.pictures += 1;
        for measure in Measure::ALL {
            if let Some(right) = asked.is_right(measure, seen) {
                let share = &mut self.shares[measure as usize];
                share.total += 1;
                share.correct += usize::from(right);
            }
        }
    }

    /// How many are right about a question.
    pub fn share(&self, measure: Measure) -> Share {
        self.shares[measure as usize]
    }

    /// The questions that arose, as JSON: `{"concept": {"correct": 3, "total": 4, "accuracy": 0.75}, ..., "pictures": 5}`.
    pub fn fields(&self) -> Map<String, Value> {
        let arose = Measure::ALL.into_iter().filter(|&measure| self.share(measure).total > 0);
        let shares = arose.map(|measure| {
            let share @ Share { correct, total } = self.share(measure);
            (measure.name().to_owned(), json!({"correct": correct, "total": total, "accuracy": share.accuracy()}))
        });
        shares.chain([("pictures".to_owned(), self.pictures.into())]).collect()
    }

    /// What [`Self::fields`] gave; nothing if it is of another form.
    pub fn from_fields(fields: &Value) -> Option<Self> {
        let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        let mut score = Self { pictures: count(&fields["pictures"])?, ..Self::default() };
        for measure in Measure::ALL {
            if let Some(fields) = fields.get(measure.name()) {
                let (correct, total) = (count(&fields["correct"])?, count(&fields["total"])?);
                score.shares[measure as usize] = Share { correct, total };
            }
        }
        Some(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(concepts: &[&str], relation: Option<&str>) -> Shown {
        Shown {
            concepts: concepts.iter().map(|&name| name.to_owned()).collect(),
            background: Some("red".into()),
            style: None,
            position: None,
            size: None,
            relation: relation.map(str::to_owned),
        }
    }

    fn classes() -> JudgeClasses {
        let blue = Shown { background: Some("blue".into()), ..shown(&["a", "b"], Some("above")) };
        JudgeClasses::of(&[blue, shown(&["c", "b"], Some("left"))])
    }

    /// a, b, c, none; blue, red; none, above, beside.
    fn seen(first: u32, second: u32, background: u32, relation: u32) -> Seen {
        [first, second, background, 0, 0, 0, relation]
    }

    fn right(asked: &Shown, seen: &Seen) -> [Option<bool>; 5] {
        let asked = Asked::new(asked, &classes(), Unsaid::IsOpen);
        [Measure::Concept, Measure::Both, Measure::InOrder, Measure::Relation, Measure::Joint]
            .map(|measure| asked.is_right(measure, seen))
    }

    #[test]
    fn one_concept_is_right_if_it_is_alone() {
        let yes = |joint| [Some(true), None, None, None, Some(joint)];
        let no = [Some(false), None, None, None, Some(false)];
        assert_eq!(right(&shown(&["b"], None), &seen(1, 3, 1, 0)), yes(true));
        assert_eq!(right(&shown(&["b"], None), &seen(1, 3, 0, 0)), yes(false));
        assert_eq!(right(&shown(&["b"], None), &seen(1, 2, 1, 2)), no);
        assert_eq!(right(&shown(&["b"], None), &seen(0, 3, 1, 0)), no);
    }

    #[test]
    fn the_order_of_two_counts_where_it_is_said() {
        let answers = |both, ordered, relation, joint| [None, Some(both), Some(ordered), relation, Some(joint)];
        let some = Some;
        for (relation, swapped) in [(None, None), (Some("beside"), some(true)), (Some("left"), some(false))] {
            let asked = shown(&["a", "c"], relation);
            let straight = relation.map(|_| true);
            assert_eq!(right(&asked, &seen(0, 2, 1, 2)), answers(true, true, straight, true));
            assert_eq!(right(&asked, &seen(2, 0, 1, 2)), answers(true, false, swapped, swapped != some(false)));
            assert_eq!(right(&asked, &seen(0, 1, 1, 2)), answers(false, false, relation.map(|r| r != "left"), false));
        }
        let above = shown(&["a", "c"], Some("above"));
        assert_eq!(right(&above, &seen(0, 2, 1, 2)), answers(true, true, some(false), false));
        assert_eq!(right(&above, &seen(0, 2, 1, 1)), answers(true, true, some(true), true));
        // The same thing twice.
        assert_eq!(right(&shown(&["a", "a"], None), &seen(0, 1, 1, 2)), answers(false, false, None, false));
    }

    #[test]
    fn what_is_not_known_is_said_and_not_counted() {
        let strange = shown(&["a", "d"], Some("left"));
        assert_eq!(right(&strange, &seen(0, 2, 1, 2)), [None; 5]);
        let asked = Asked::new(&strange, &classes(), Unsaid::IsOpen);
        assert_eq!(asked.unknown, [("concepts", "d".to_owned())]);
        assert_eq!(asked.is_right(Measure::Background, &seen(0, 2, 1, 2)), Some(true));
        let picture = Asked::new(&shown(&["c"], None), &classes(), Unsaid::IsUsual);
        assert_eq!(picture.is_right(Measure::Relation, &seen(2, 3, 1, 2)), Some(false));
        assert_eq!(picture.is_right(Measure::Position, &seen(2, 3, 1, 2)), Some(true));
    }

    /// Shares against a count by hand, there and back through JSON.
    #[test]
    fn shares_are_counts() {
        let asked = [shown(&["a"], None), shown(&["b", "c"], None)].map(|s| Asked::new(&s, &classes(), Unsaid::IsOpen));
        let mut score = Score::default();
        let looks = [(0, seen(0, 3, 1, 0)), (0, seen(0, 3, 0, 0)), (0, seen(1, 3, 1, 0)), (1, seen(2, 1, 1, 2))];
        looks.iter().for_each(|(which, seen)| score.add(&asked[*which], seen));
        let share = |measure| (score.share(measure).correct, score.share(measure).total);
        assert_eq!((share(Measure::Concept), share(Measure::Both), share(Measure::InOrder)), ((2, 3), (1, 1), (0, 1)));
        assert_eq!(
            (share(Measure::Background), share(Measure::Style), share(Measure::Joint)),
            ((3, 4), (0, 0), (2, 4))
        );
        assert_eq!(score.fields()["joint"], json!({"correct": 2, "total": 4, "accuracy": 0.5}));
        assert!(!score.fields().contains_key("style"));
        assert_eq!(Score::from_fields(&score.fields().into()), Some(score));
        assert_eq!(Score::from_fields(&Value::Null), None);
    }
}
