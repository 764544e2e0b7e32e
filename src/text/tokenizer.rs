//! CLIP's byte-pair tokenizer (Radford et al. 2021), with the padding of each model family.

use super::byte_pairs::{self, END_OF_WORD, MergeList, Vocabulary, merge_lines};
use super::known_words::{KnownWords, UnknownWord};
use super::tokenizer_files::{InModel, TokenizerFiles, TokenizerSource};
use super::tokenizer_json;
use crate::checkpoints::ModelFiles;
use crate::config::LONGEST;
use crate::{Error, ErrorKind, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::io::Read;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// How CLIP cuts text into words before merging bytes.
pub(super) const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

pub(super) const START: &str = "<|startoftext|>";
pub(super) const END: &str = "<|endoftext|>";

/// Bytes of the longest list of merges that is unpacked.
const LONGEST_MERGES: u64 = 64 << 20;

/// The context of every published CLIP text encoder.
const DEFAULT_LENGTH: usize = 77;

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Start, text, end, and padding up to the model's length.
    pub ids: Vec<u32>,
    /// The end of the prompt that found no room, if it was too long.
    pub cut: Option<String>,
}

/// A tokenizer with its model's length and padding.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    max_length: usize,
    /// The tokens that one token of a prompt stands for.
    learned: HashMap<u32, Vec<u32>>,
    /// The words that the model was trained on, if they are few.
    known_words: Option<KnownWords>,
}

impl Tokenizer {
    /// From a folder with `vocab.json` and `merges.txt`, or `tokenizer.json`, or `merges.txt.gz` alone, from which
    /// CLIP's vocabulary follows ([`clip_vocabulary`]); `tokenizer_config.json` and
    /// `special_tokens_map.json` say how long sequences are and how they are padded.
    ///
    /// # Errors
    /// If the files are not there or are not a tokenizer's, or `tokenizer.json` asks for what CLIP's tokenizers do not do.
    pub fn from_files(files: &ModelFiles, folder: &str) -> Result<Self> {
        Self::from_source(&InModel { files, folder })
    }

    /// From files in memory: see [`Self::from_files`].
    ///
    /// # Errors
    /// If they are not a tokenizer's.
    pub fn from_memory(files: &TokenizerFiles) -> Result<Self> {
        Self::from_source(files)
    }

    fn from_source(files: &dyn TokenizerSource) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { folder: files.place(), reason };
        let settings = TokenizerSettings::read(files)?;
        let inner = if files.has("vocab.json") && files.has("merges.txt") {
            let (vocab, merges) = (files.text("vocab.json")?, files.text("merges.txt")?);
            let Vocabulary(vocab) = serde_json::from_str(&vocab).map_err(|e| fail(format!("vocab.json: {e}")))?;
            byte_pair_encoding(vocab, &merges, settings.special_tokens()).map_err(|e| fail(e.to_string()))?
        } else if files.has("merges.txt.gz") {
            let merges = unpacked_merges(&files.bytes("merges.txt.gz")?).map_err(|e| fail(e.to_string()))?;
            let vocab = (0..).zip(clip_vocabulary(&merges)).map(|(id, token)| (token, id)).collect();
            byte_pair_encoding(vocab, &merges, settings.special_tokens()).map_err(|e| fail(e.to_string()))?
        } else if files.has("tokenizer.json") {
            tokenizer_json::read(&files.bytes("tokenizer.json")?).map_err(fail)?
        } else {
            return Err(fail("there is neither vocab.json with merges.txt nor tokenizer.json".into()));
        };

        let id =
            |token: &str| inner.token_to_id(token).ok_or_else(|| fail(format!("`{token}` is not in the vocabulary")));
        Ok(Self {
            start: id(START)?,
            end: id(END)?,
            pad: id(&settings.token("pad_token", END).0)?,
            max_length: settings.max_length(),
            learned: HashMap::new(),
            known_words: KnownWords::read(files)?,
            inner,
        })
    }

    /// The size of the vocabulary, by which a text encoder's table is as large.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that ends a text, and the one that fills up what is left.
    pub fn end_and_padding(&self) -> (u32, u32) {
        (self.end, self.pad)
    }

    /// The token that begins a text.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// The number of ids that [`Self::encode`] gives.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The words that the model was trained on, where its tokenizer says them.
    pub fn known_words(&self) -> Option<&KnownWords> {
        self.known_words.as_ref()
    }

    /// The words of a prompt that the model was not trained on, where its tokenizer says on which it was.
    pub fn unknown_words(&self, prompt: &str) -> Vec<UnknownWord> {
        self.known_words.as_ref().map_or(Vec::new(), |known| known.unknown(prompt))
    }

    /// Token ids of a prompt, cut and padded to the model's length.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn encode(&self, prompt: &str) -> Result<Tokens> {
        let (ids, starts) = self.tokenize(prompt)?;
        let room = self.max_length - 2;
        let cut = starts.get(room).map(|&start| prompt.get(start..).unwrap_or(prompt).trim().to_owned());
        Ok(Tokens { ids: self.padded(&ids), cut })
    }

    /// Start, as many of the ids as there is room for, end and padding.
    pub fn padded(&self, ids: &[u32]) -> Vec<u32> {
        let mut padded = Vec::with_capacity(self.max_length);
        padded.push(self.start);
        padded.extend(ids.iter().take(self.max_length - 2));
        padded.push(self.end);
        padded.resize(self.max_length, self.pad);
        padded
    }

    /// The ids of a text alone, without start and end.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenize(text)?.0)
    }

    /// The same by tokens of the vocabulary and added ones: an added one that stands for several vectors has as many ids.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn encode_words(&self, text: &str) -> Result<Vec<Vec<u32>>> {
        Ok(self.words(text)?.into_iter().map(|(ids, _)| ids).collect())
    }

    /// The id of a token of the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Start, text and end of a prompt of any length.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn encode_untruncated(&self, prompt: &str) -> Result<Vec<u32>> {
        let (ids, _) = self.tokenize(prompt)?;
        Ok([&[self.start], &ids[..], &[self.end]].concat())
    }

    /// Adds a token that stands for `count` learned vectors, and gives their ids, the next that are free: of the token
    /// and of `TOKEN_1`, `TOKEN_2`, ... As in diffusers it is found in any letter case, and within words too.
    ///
    /// # Errors
    /// If the vocabulary has one of them already.
    pub fn add_token(&mut self, token: &str, count: usize) -> Result<Vec<u32>> {
        let names = (0..count).map(|i| if i == 0 { token.to_owned() } else { format!("{token}_{i}") });
        let names: Vec<String> = names.collect();
        if let Some(known) = names.iter().find(|name| self.inner.token_to_id(name).is_some()) {
            let fix = "the tokenizer has it already; give another one after the file, as in FILE:<token>";
            return Err(Error::invalid("the embedding's token", known, fix));
        }
        let cannot = |reason: String| Error::invalid("the embedding's token", token, reason);
        let added = names.iter().map(|name| AddedToken::from(name.as_str(), false)).collect::<Vec<_>>();
        self.inner.add_tokens(added).map_err(|e| cannot(e.to_string()))?;
        let ids = names.iter().map(|name| self.inner.token_to_id(name)).collect::<Option<Vec<_>>>();
        let ids = ids.filter(|ids| !ids.is_empty()).ok_or_else(|| cannot("it cannot be added; take another".into()))?;
        self.learned.insert(ids[0], ids.clone());
        if let Some(known) = &mut self.known_words {
            known.add(token);
        }
        Ok(ids)
    }

    /// The ids of the text alone, and where in it each token starts, in bytes.
    fn tokenize(&self, prompt: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for (all, start) in self.words(prompt)? {
            starts.extend(all.iter().map(|_| start));
            ids.extend(all);
        }
        Ok((ids, starts))
    }

    /// For each token of the text what it stands for, and where it starts, in bytes.
    fn words(&self, prompt: &str) -> Result<Vec<(Vec<u32>, usize)>> {
        let encoding = self
            .inner
            .encode(prompt, false)
            .map_err(|e| Error::invalid("the prompt", format!("{prompt:?}"), format!("it cannot be tokenized: {e}")))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        let all = |id: &u32| self.learned.get(id).cloned().unwrap_or_else(|| vec![*id]);
        Ok(tokens.map(|(id, &(start, _))| (all(id), start)).collect())
    }
}

/// The tokenizer as transformers builds it from the two classic files.
pub(super) fn byte_pair_encoding(
    vocab: Vocab,
    merges: &str,
    special: Vec<AddedToken>,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let MergeList(merges) = MergeList::of_lines(merges)?;
    let added = |token: &str| [START, END].contains(&token) || special.iter().any(|special| special.content == token);
    byte_pairs::check(&vocab, &merges, &added)?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .end_of_word_suffix(END_OF_WORD.into())
        .unk_token(END.into())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let spaces = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ")?;
    tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

/// The text of a compressed list of merges.
///
/// # Errors
/// If it is not gzip, not text or too long.
pub fn unpacked_merges(bytes: &[u8]) -> std::io::Result<String> {
    let mut merges = String::new();
    let decoder = flate2::read::GzDecoder::new(bytes);
    if decoder.take(LONGEST_MERGES).read_to_string(&mut merges)? as u64 == LONGEST_MERGES {
        return Err(std::io::Error::other("the list of merges is too long"));
    }
    Ok(merges)
}

/// CLIP's vocabulary by id: a character for each byte, the same at the end of a word, what each merge gives, and the
/// two special tokens.
pub fn clip_vocabulary(merges: &str) -> Vec<String> {
    // Bytes that print stand for themselves and come first; the others take the characters from 256 on.
    let prints = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let printing = (0..256u32).filter(prints);
    let others = (256u32..).take(256 - printing.clone().count());
    let bytes: Vec<String> = printing.chain(others).filter_map(char::from_u32).map(String::from).collect();
    let ends = bytes.iter().map(|byte| format!("{byte}{END_OF_WORD}"));
    let merged = merge_lines(merges).map(|line| line.replacen(' ', "", 1));
    let special = [START, END].map(String::from);
    bytes.iter().cloned().chain(ends).chain(merged).chain(special).collect()
}

/// `tokenizer_config.json`, and `special_tokens_map.json` for what that does not say.
struct TokenizerSettings {
    config: Value,
    map: Value,
}

impl TokenizerSettings {
    fn read(files: &dyn TokenizerSource) -> Result<Self> {
        let json = |name: &str| -> Result<Value> {
            if !files.has(name) {
                return Ok(Value::Null);
            }
            let malformed =
                |reason: String| Error::malformed(ErrorKind::Model, "JSON file", &files.place().join(name), reason);
            let text = files.text(name)?;
            if text.len() > LONGEST {
                return Err(malformed(format!("it has {} bytes, and at most {LONGEST} are read", text.len())));
            }
            serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))
        };
        Ok(Self { config: json("tokenizer_config.json")?, map: json("special_tokens_map.json")? })
    }

    /// The model's length; transformers writes 1e30 where a tokenizer has none of its own.
    fn max_length(&self) -> usize {
        let length = self.config["model_max_length"].as_f64().filter(|&n| (3.0..1e6).contains(&n));
        length.map_or(DEFAULT_LENGTH, |n| n as usize)
    }

    /// A special token, and whether it is looked for after normalisation, in any letter case. It is written
    /// as a string, which means it is not, or as an object that says so.
    fn token(&self, name: &str, default: &str) -> (String, bool) {
        let found = [&self.config[name], &self.map[name]].into_iter().find(|token| !token.is_null());
        let Some(token) = found else { return (default.into(), false) };
        let content = token.as_str().or_else(|| token["content"].as_str()).unwrap_or(default);
        (content.into(), token["normalized"].as_bool().unwrap_or(false))
    }

    /// The special tokens as transformers registers them, the padding among them: a model that pads with "!"
    /// takes every "!" of a prompt for padding. A token that several names share is normalised only if
    /// all of them say so.
    fn special_tokens(&self) -> Vec<AddedToken> {
        let names = [("bos_token", START), ("eos_token", END), ("unk_token", END), ("pad_token", END)];
        let mut tokens: Vec<(String, bool)> = Vec::new();
        for (content, normalized) in names.map(|(name, default)| self.token(name, default)) {
            match tokens.iter_mut().find(|(other, _)| *other == content) {
                Some((_, all)) => *all &= normalized,
                None => tokens.push((content, normalized)),
            }
        }
        tokens.into_iter().map(|(content, normalized)| AddedToken::from(content, true).normalized(normalized)).collect()
    }
}
