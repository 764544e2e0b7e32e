//! Learning a byte-pair vocabulary from texts (Sennrich et al. 2016, algorithm 1), with CLIP's conventions.

use super::tokenizer::{END, START, byte_pair_encoding, clip_vocabulary};
use super::tokenizer_files::WORDS;
use super::{KnownWords, TokenizerFiles};
use crate::{Error, Result};
use serde_json::{Map, json};
use std::collections::{BTreeSet, HashMap};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as Inner,
};

/// A pair that comes this often at least is merged.
const LEAST_FREQUENT: u64 = 2;

/// Texts, cut into words as CLIP's tokenizer cuts them, with how often each word comes.
#[derive(Debug, Default)]
struct Words(HashMap<String, u64>);

impl Words {
    /// Words of texts as the tokenizer sees them, bytes as characters.
    fn of<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self> {
        let vocabulary = (0..).zip(clip_vocabulary("")).map(|(id, token)| (token, id)).collect();
        let cutter = byte_pair_encoding(vocabulary, "", Vec::new())
            .map_err(|e| Error::invalid("the tokenizer to train", e, "this is a bug"))?;
        let mut counts = HashMap::<&str, u64>::new();
        texts.for_each(|text| *counts.entry(text).or_default() += 1);
        let mut words = Self::default();
        for (text, count) in counts {
            let cut = cut(&cutter, text)
                .map_err(|e| Error::invalid("a text to train the tokenizer on", format!("{text:?}"), e.to_string()))?;
            cut.into_iter().for_each(|word| *words.0.entry(word).or_default() += count);
        }
        Ok(words)
    }
}

fn cut(tokenizer: &Inner, text: &str) -> tokenizers::Result<Vec<String>> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    let mut pieces = PreTokenizedString::from(normalized);
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut pieces)?;
    }
    let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
    Ok(splits.into_iter().map(|(word, ..)| word.to_owned()).filter(|word| !word.is_empty()).collect())
}

/// Words as sequences of symbols, in which pairs are merged one after another.
struct Merger {
    symbols: Vec<String>,
    words: Vec<(Vec<usize>, u64)>,
    /// How often each pair of neighbours comes.
    counts: HashMap<(usize, usize), u64>,
    /// What merges gave so far.
    made: BTreeSet<String>,
    /// The words in which each pair comes, or came.
    places: HashMap<(usize, usize), BTreeSet<usize>>,
}

impl Merger {
    fn new(words: Words) -> Self {
        let mut merger = Self {
            symbols: Vec::new(),
            words: Vec::new(),
            counts: HashMap::new(),
            made: BTreeSet::new(),
            places: HashMap::new(),
        };
        let mut ids = HashMap::<String, usize>::new();
        let mut sorted: Vec<_> = words.0.into_iter().collect();
        sorted.sort_unstable();
        for (word, count) in sorted {
            let last = word.chars().count() - 1;
            let symbol = |(i, c): (usize, char)| {
                let symbol = if i == last { format!("{c}</w>") } else { c.to_string() };
                *ids.entry(symbol.clone()).or_insert_with(|| {
                    merger.symbols.push(symbol);
                    merger.symbols.len() - 1
                })
            };
            let symbols = word.chars().enumerate().map(symbol).collect();
            merger.words.push((symbols, count));
        }
        (0..merger.words.len()).for_each(|word| merger.count(word, true));
        merger
    }

    /// Adds a word's pairs to the counts, or takes them away.
    fn count(&mut self, word: usize, adds: bool) {
        let (symbols, times) = &self.words[word];
        for pair in symbols.windows(2).map(|pair| (pair[0], pair[1])) {
            let count = self.counts.entry(pair).or_default();
            if adds {
                *count += times;
                self.places.entry(pair).or_default().insert(word);
            } else {
                *count -= times;
            }
        }
    }

    /// The pair that comes most often; of several the first by its symbols. A vocabulary has each entry once, so pairs that give
    /// what another one gave are left alone.
    fn most_frequent(&self) -> Option<(usize, usize)> {
        let symbols = |pair: &(usize, usize)| (self.symbols[pair.0].as_str(), self.symbols[pair.1].as_str());
        let is_new = |pair: &(usize, usize)| !self.made.contains(&self.merged(*pair));
        let frequent = self.counts.iter().filter(|(pair, count)| **count >= LEAST_FREQUENT && is_new(pair));
        let most = frequent.max_by(|a, b| a.1.cmp(b.1).then_with(|| symbols(b.0).cmp(&symbols(a.0))))?;
        Some(*most.0)
    }

    fn merged(&self, pair: (usize, usize)) -> String {
        format!("{}{}", self.symbols[pair.0], self.symbols[pair.1])
    }

    fn merge(&mut self, pair: (usize, usize)) {
        let (id, merged) = (self.symbols.len(), self.merged(pair));
        self.made.insert(merged.clone());
        self.symbols.push(merged);
        for word in self.places.remove(&pair).unwrap_or_default() {
            self.count(word, false);
            let symbols = &mut self.words[word].0;
            let (mut read, mut kept) = (0, Vec::with_capacity(symbols.len()));
            while read < symbols.len() {
                let is_pair = symbols[read] == pair.0 && symbols.get(read + 1) == Some(&pair.1);
                kept.push(if is_pair { id } else { symbols[read] });
                read += if is_pair { 2 } else { 1 };
            }
            *symbols = kept;
            self.count(word, true);
        }
        self.counts.remove(&pair);
    }
}

/// A tokenizer with CLIP's conventions whose merges are learned from texts: at most `merges` of them, the most frequent pair
/// first, of equally frequent ones the first by its symbols. All bytes are in its vocabulary, so it reads any text.
/// `max_length` is the number of ids that a text becomes, with its start, end and padding.
///
/// # Errors
/// If there is no text, or one cannot be cut into words, or the length leaves no room for a word.
pub fn train_tokenizer<'a>(
    texts: impl Iterator<Item = &'a str>,
    merges: usize,
    max_length: usize,
) -> Result<TokenizerFiles> {
    if max_length < 3 {
        return Err(Error::invalid("the length of the token sequences", max_length, "take 3 or more"));
    }
    let texts: Vec<&str> = texts.collect();
    let known: String = KnownWords::of(texts.iter().copied()).iter().flat_map(|word| [word, "\n"]).collect();
    let words = Words::of(texts.into_iter())?;
    if words.0.is_empty() {
        return Err(Error::invalid("the texts to train a tokenizer on", "without a word", "give captions"));
    }
    let mut merger = Merger::new(words);
    let mut lines = vec!["#version: 0.2".to_owned()];
    while lines.len() <= merges
        && let Some(pair) = merger.most_frequent()
    {
        lines.push(format!("{} {}", merger.symbols[pair.0], merger.symbols[pair.1]));
        merger.merge(pair);
    }
    lines.push(String::new());
    let merges = lines.join("\n");
    let vocabulary = clip_vocabulary(&merges).into_iter().enumerate().map(|(id, token)| (token, id.into()));
    let config = json!({
        "add_prefix_space": false,
        "bos_token": START,
        "do_lower_case": true,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    });
    let special = json!({"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END});
    Ok(TokenizerFiles::new([
        ("vocab.json", serde_json::Value::Object(Map::from_iter(vocabulary)).to_string()),
        ("merges.txt", merges),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("special_tokens_map.json", format!("{special:#}\n")),
        (WORDS, known),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Tokenizer;

    fn merges(files: &TokenizerFiles) -> Vec<String> {
        let merges = files.files().find(|(name, _)| *name == "merges.txt").map(|(_, bytes)| bytes.to_vec());
        let text = String::from_utf8(merges.unwrap_or_default()).unwrap_or_default();
        text.lines().skip(1).map(str::to_owned).collect()
    }

    /// The example of Sennrich et al. (2016), section 3.2, with its counts: "low" 5 times, "lowest" 2, "newer" 6, "wider" 3.
    #[test]
    fn merges_are_those_of_the_paper() -> Result<()> {
        let texts = [("low", 5), ("lowest", 2), ("newer", 6), ("wider", 3)];
        let texts = texts.iter().flat_map(|(word, count)| std::iter::repeat_n(*word, *count));
        let files = train_tokenizer(texts, 4, 8)?;
        // They come 9, 7, 6 and 6 times; of the 6 with "ew" all are in "newer", where "n e" comes as often.
        assert_eq!(merges(&files), ["e r</w>", "l o", "e w", "ew er</w>"]);
        Ok(())
    }

    #[test]
    fn frequent_words_become_single_tokens_and_anything_can_be_read() -> Result<()> {
        let texts = ["A red  Fox", "a red fox, flat style", "two red foxes"];
        let files = train_tokenizer(texts.into_iter(), 1000, 10)?;
        let tokenizer = Tokenizer::from_memory(&files)?;
        assert_eq!(tokenizer.encode_text("red FOX")?.len(), 2);
        assert_eq!(tokenizer.vocabulary_size(), 512 + merges(&files).len() + 2);
        let tokens = tokenizer.encode("日本 zq")?;
        assert_eq!((tokens.ids.len(), tokens.cut), (10, None));
        assert_eq!(tokens.ids[0], tokenizer.start());
        assert_eq!(tokens.ids[9], tokenizer.end_and_padding().0);
        // Words that come once are in pieces, and the same texts give the same files.
        assert!(tokenizer.encode_text("foxes")?.len() > 1);
        assert_eq!(train_tokenizer(texts.into_iter().rev(), 1000, 10)?, files);
        Ok(())
    }

    #[test]
    fn nothing_can_be_learned_of_nothing() {
        assert!(
            train_tokenizer(["  "].into_iter(), 10, 8).is_err() && train_tokenizer(["a"].into_iter(), 1, 2).is_err()
        );
    }
}
