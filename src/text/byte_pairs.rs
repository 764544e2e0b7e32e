//! A byte-pair vocabulary and its merges, checked before a tokenizer is made of them.

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::fmt;
use tokenizers::models::bpe::{Merges, Vocab};

/// What stands at the end of a word's last token.
pub(super) const END_OF_WORD: &str = "</w>";

/// More than any tokenizer of a text encoder has.
const MOST_TOKENS: usize = 1 << 20;

/// Tokens with their ids, from a JSON object in which each has one of its own.
#[derive(Debug, Default)]
pub(super) struct Vocabulary(pub Vocab);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens with their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut vocabulary = Vocab::default();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if vocabulary.len() == MOST_TOKENS {
                        return Err(A::Error::custom(format!("there are more than {MOST_TOKENS} tokens")));
                    }
                    if let Some(other) = vocabulary.get(&token) {
                        return Err(A::Error::custom(format!("the token {token:?} has two ids, {other} and {id}")));
                    }
                    vocabulary.insert(token, id);
                }
                Ok(Vocabulary(vocabulary))
            }
        }
        deserializer.deserialize_map(Tokens)
    }
}

/// Pairs of tokens in the order in which they are merged, from JSON in either of its forms: `"a b"` or `["a", "b"]`.
#[derive(Debug, Default)]
pub(super) struct MergeList(pub Merges);

/// One pair in either form.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Line(String),
    Parts(String, String),
}

impl<'de> Deserialize<'de> for MergeList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = MergeList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of pairs of tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MergeList, A::Error> {
                let mut merges = Merges::new();
                while let Some(pair) = list.next_element()? {
                    if merges.len() == MOST_TOKENS {
                        return Err(A::Error::custom(format!("there are more than {MOST_TOKENS} merges")));
                    }
                    merges.push(match pair {
                        Pair::Parts(left, right) => (left, right),
                        Pair::Line(line) => self::pair(&line).map_err(A::Error::custom)?,
                    });
                }
                Ok(MergeList(merges))
            }
        }
        deserializer.deserialize_seq(Pairs)
    }
}

impl MergeList {
    /// Those of a `merges.txt`, one a line.
    ///
    /// # Errors
    /// If a line is no pair, or there are too many.
    pub fn of_lines(merges: &str) -> Result<Self, String> {
        let pairs = merge_lines(merges).take(MOST_TOKENS + 1).map(pair).collect::<Result<Merges, _>>()?;
        if pairs.len() > MOST_TOKENS {
            Err(format!("there are more than {MOST_TOKENS} merges"))
        } else {
            Ok(Self(pairs))
        }
    }
}

/// The lines of a `merges.txt` that are merges.
pub(super) fn merge_lines(merges: &str) -> impl Iterator<Item = &str> {
    merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
}

fn pair(line: &str) -> Result<(String, String), String> {
    let parts = line.split_once(' ').ok_or_else(|| format!("the merge `{line}` is not a pair"))?;
    Ok((parts.0.into(), parts.1.into()))
}

/// Whether texts can be cut by this vocabulary and these merges: ids are told apart, whatever is merged and comes of it is a
/// token, and merges are there where the vocabulary has what only they give. `added` are tokens that are found as they are.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check(vocabulary: &Vocab, merges: &Merges, added: &dyn Fn(&str) -> bool) -> Result<(), String> {
    let mut tokens = HashMap::with_capacity(vocabulary.len());
    for (token, id) in vocabulary {
        if let Some(other) = tokens.insert(id, token) {
            let (first, second) = if other < token { (other, token) } else { (token, other) };
            return Err(format!("the tokens {first:?} and {second:?} have the same id, {id}"));
        }
    }
    for (left, right) in merges {
        let merged = format!("{left}{right}");
        let missing = [left, right, &merged].into_iter().find(|token| !vocabulary.contains_key(token.as_str()));
        if let Some(missing) = missing {
            return Err(format!(
                "the merge of {left:?} and {right:?} needs {missing:?}, which is no token; get the files again"
            ));
        }
    }
    let is_merged = |token: &&String| {
        let text = token.strip_suffix(END_OF_WORD).unwrap_or(token);
        text.chars().nth(1).is_some() && !added(token)
    };
    if merges.is_empty()
        && let Some(token) = vocabulary.keys().filter(is_merged).min()
    {
        return Err(format!(
            "it has no merges, and tokens such as {token:?} that only merges give; get the files again"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[(&str, u32)]) -> Vocab {
        tokens.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect()
    }

    fn checked(tokens: &[(&str, u32)], merges: &str) -> Result<(), String> {
        check(&vocabulary(tokens), &MergeList::of_lines(merges)?.0, &|token| token.starts_with("<|"))
    }

    #[test]
    fn what_cannot_be_is_named() {
        let letters = [("a", 0), ("b", 1), ("b</w>", 2), ("<|end|>", 3)];
        let merged = [&letters[..], &[("ab</w>", 4)]].concat();
        assert_eq!(checked(&letters, "#version: 0.2\n"), Ok(()));
        assert_eq!(checked(&merged, "a b</w>"), Ok(()));
        let says = |tokens: &[(&str, u32)], merges: &str, part: &str| {
            let message = checked(tokens, merges).err().unwrap_or_default();
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        };
        says(&merged, "", "no merges, and tokens such as \"ab</w>\"");
        says(&merged, "a b", "needs \"ab\", which is no token");
        says(&merged, "c b</w>", "needs \"c\"");
        says(&merged, "ab", "`ab` is not a pair");
        says(&[("a", 0), ("b", 0)], "", "\"a\" and \"b\" have the same id, 0");
    }

    #[test]
    fn json_has_two_forms_and_no_token_twice() {
        let merges = |text: &str| serde_json::from_str::<MergeList>(text).map(|merges| merges.0);
        let expected = vec![("a".to_owned(), "b c".to_owned())];
        assert_eq!(merges(r#"["a b c"]"#).ok(), Some(expected.clone()));
        assert_eq!(merges(r#"[["a", "b c"]]"#).ok(), Some(expected));
        assert!(merges(r#"[["a"]]"#).is_err() && merges(r#"["a"]"#).is_err());
        let twice = serde_json::from_str::<Vocabulary>(r#"{"a": 0, "a": 1}"#).map(|_| ()).map_err(|e| e.to_string());
        assert!(twice.is_err_and(|message| message.contains("two ids, 0 and 1")));
    }
}
