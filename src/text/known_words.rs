//! The words of the captions that a model was trained on: of any other it knows nothing.

use super::tokenizer_files::{InModel, TokenizerSource, WORDS};
use crate::Result;
use crate::checkpoints::ModelFiles;
use std::collections::BTreeSet;

/// Words that are offered in the place of an unknown one, at most.
const OFFERED: usize = 3;

/// The words of a closed vocabulary, in lower case: a model that was trained on few captions has one, while one that was trained on
/// those of the web does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownWords(BTreeSet<String>);

/// A word that is not in a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownWord {
    /// The word, in lower case.
    pub word: String,
    /// Words of the vocabulary that are spelt alike, the nearest first.
    pub nearest: Vec<String>,
}

impl KnownWords {
    /// Those of texts.
    pub fn of<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        Self(texts.flat_map(words).collect())
    }

    /// Those that a model's tokenizer in this folder lists; nothing if it lists none.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub fn of_model(files: &ModelFiles, folder: &str) -> Result<Option<Self>> {
        Self::read(&InModel { files, folder })
    }

    pub(super) fn read(files: &dyn TokenizerSource) -> Result<Option<Self>> {
        let list = files.has(WORDS).then(|| files.text(WORDS)).transpose()?;
        Ok(list.map(|list| Self::of(list.lines())))
    }

    /// Adds those of a text.
    pub fn add(&mut self, text: &str) {
        self.0.extend(words(text));
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The words of a text that are not among them, each once, in the text's order.
    pub fn unknown(&self, text: &str) -> Vec<UnknownWord> {
        let mut unknown: Vec<UnknownWord> = Vec::new();
        for word in words(text) {
            if !self.0.contains(&word) && unknown.iter().all(|other| other.word != word) {
                unknown.push(UnknownWord { nearest: self.nearest(&word), word });
            }
        }
        unknown
    }

    /// A word of three letters may differ in one, of six in two, of nine and more in three.
    fn nearest(&self, word: &str) -> Vec<String> {
        let most = (word.chars().count() / 3).min(3);
        let distances = self.0.iter().map(|known| (strsim::damerau_levenshtein(word, known), known));
        let mut near: Vec<_> = distances.filter(|&(distance, _)| distance <= most).collect();
        near.sort();
        near.into_iter().take(OFFERED).map(|(_, known)| known.clone()).collect()
    }
}

/// Runs of letters, with apostrophes inside them. Numbers are left out: in prompts they are weights.
fn words(text: &str) -> impl Iterator<Item = String> {
    let pieces = text.split(|c: char| !c.is_alphanumeric() && c != '\'');
    let pieces = pieces.map(|piece| piece.trim_matches('\'').to_lowercase());
    pieces.filter(|piece| piece.chars().any(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_are_found_with_what_is_near() {
        let known = KnownWords::of(["A fox on a blue background", "a father's rocket, flat style"].into_iter());
        assert_eq!(known.len(), 9);
        assert_eq!(known.unknown("the (Fox:1.3), [father's] ROCKET 2"), [word("the", &[])]);
        let found = known.unknown("xyzzy foxes backgroud rokcet xyzzy");
        let expected =
            [word("xyzzy", &[]), word("foxes", &[]), word("backgroud", &["background"]), word("rokcet", &["rocket"])];
        assert_eq!(found, expected);
        assert!(KnownWords::default().unknown("").is_empty());
    }

    fn word(word: &str, nearest: &[&str]) -> UnknownWord {
        UnknownWord { word: word.into(), nearest: nearest.iter().map(|&near| near.to_owned()).collect() }
    }
}
