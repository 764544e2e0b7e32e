//! `tokenizer.json`, of which only what CLIP's tokenizers are made of is understood.
//!
//! The form can say far more, up to what takes any amount of memory or gives other tokens each time. A tokenizer is put
//! together from what is known, and the rest is refused by name.

use super::byte_pairs::{self, END_OF_WORD, MergeList, Vocabulary};
use super::tokenizer::{END, START, WORDS};
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, NFD, NFKC, NFKD, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Bytes; CLIP's has some three million.
const LONGEST: usize = 16 << 20;

/// The most rules of a kind that follow one another.
const MOST_RULES: usize = 16;

/// What normalizers make one space of.
const SPACES: &str = r"\s+";

/// What stands before the words' pattern in [`WORDS`], and not in all files.
const SPECIAL_WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|";

/// The parts of a file that say which tokens a text has.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

/// A token that is found in a text as it is.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// Files from before the kind of model was named have byte pairs.
#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    vocab: Option<Vocabulary>,
    #[serde(default)]
    merges: Option<MergeList>,
}

/// The tokenizer that a file describes.
///
/// # Errors
/// What cannot be used, in words.
pub(super) fn read(bytes: &[u8]) -> Result<Tokenizer, String> {
    if bytes.len() > LONGEST {
        return Err(format!("tokenizer.json has {} bytes, more than any of CLIP's kind", bytes.len()));
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| format!("tokenizer.json: {e}"))?;
    build(file).map_err(|reason| format!("tokenizer.json: {reason}"))
}

fn build(file: File) -> Result<Tokenizer, String> {
    let failed = |error: tokenizers::Error| error.to_string();
    let added = |token: &str| [START, END].contains(&token) || file.added_tokens.iter().any(|a| a.content == token);
    let mut tokenizer = Tokenizer::new(file.model.build(&added)?);
    let mut rules = Vec::new();
    normalizers(&file.normalizer, &mut rules)?;
    if !rules.is_empty() {
        tokenizer.with_normalizer(Some(Normalizers::new(rules))).map_err(failed)?;
    }
    let mut rules = Vec::new();
    pre_tokenizers(&file.pre_tokenizer, &mut rules)?;
    if !rules.iter().any(|rule| matches!(rule, PreTokenizerWrapper::ByteLevel(_))) {
        return Err("its pre_tokenizer has no ByteLevel; CLIP's cut texts into bytes".into());
    }
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(rules)));
    // Start and end are put around a text here, so of this nothing but its kind counts.
    match kind_of(&file.post_processor) {
        None | Some("RobertaProcessing" | "TemplateProcessing" | "BertProcessing" | "ByteLevel") => {}
        _ => return Err(not_clips("post_processor", &file.post_processor)),
    }
    let tokens = file.added_tokens.iter().map(|token| {
        let Added { ref content, single_word, lstrip, rstrip, normalized, special, .. } = *token;
        AddedToken { content: content.clone(), single_word, lstrip, rstrip, normalized, special }
    });
    tokenizer.add_tokens(tokens.collect::<Vec<_>>()).map_err(failed)?;
    for Added { id, content, .. } in &file.added_tokens {
        let got = tokenizer.token_to_id(content);
        if got != Some(*id) {
            let got = got.map_or_else(|| "none".into(), |got| got.to_string());
            return Err(format!(
                "its added token {content:?} has the id {id}, where the vocabulary has or leaves {got}"
            ));
        }
    }
    Ok(tokenizer)
}

impl Model {
    fn build(self, added: &dyn Fn(&str) -> bool) -> Result<BPE, String> {
        if let Some(kind) = self.kind.filter(|kind| kind != "BPE") {
            return Err(format!("its model is of the type {kind:?}; CLIP's is BPE"));
        }
        if let Some(dropout) = self.dropout.filter(|dropout| *dropout != 0.0) {
            return Err(format!(
                "its dropout is {dropout}, so that merges are left out at random and one prompt makes many pictures; set it to null"
            ));
        }
        if let Some(prefix) = self.continuing_subword_prefix.filter(|prefix| !prefix.is_empty()) {
            return Err(format!("its continuing_subword_prefix is {prefix:?}; CLIP's is empty"));
        }
        if self.end_of_word_suffix.as_deref() != Some(END_OF_WORD) {
            return Err(format!("its end_of_word_suffix is {:?}; CLIP's is {END_OF_WORD:?}", self.end_of_word_suffix));
        }
        let (Some(Vocabulary(vocabulary)), Some(MergeList(merges))) = (self.vocab, self.merges) else {
            return Err("its model lacks vocab or merges".into());
        };
        if let Some(token) = self.unk_token.as_ref().filter(|token| !vocabulary.contains_key(token.as_str())) {
            return Err(format!("its unk_token {token:?} is not in the vocabulary"));
        }
        byte_pairs::check(&vocabulary, &merges, added)?;
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .end_of_word_suffix(END_OF_WORD.into())
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        let model = match self.unk_token {
            Some(token) => model.unk_token(token),
            None => model,
        };
        model.build().map_err(|e| e.to_string())
    }
}

/// What a rule's `type` says; nothing where there is no rule.
fn kind_of(rule: &Value) -> Option<&str> {
    if rule.is_null() { None } else { Some(rule["type"].as_str().unwrap_or("")) }
}

fn not_clips(what: &str, rule: &Value) -> String {
    let mut shown = rule.to_string();
    if let Some((end, _)) = shown.char_indices().nth(120) {
        shown.replace_range(end.., "...");
    }
    format!("its {what} {shown} is none of CLIP's, and only those are read; give vocab.json and merges.txt instead")
}

/// The rules of a sequence, or a rule alone.
fn parts<'a>(rule: &'a Value, field: &str) -> Cow<'a, [Value]> {
    match (kind_of(rule), rule[field].as_array()) {
        (None, _) => Cow::Borrowed(&[]),
        (Some("Sequence"), Some(rules)) => Cow::Borrowed(rules),
        _ => Cow::Owned(vec![rule.clone()]),
    }
}

fn normalizers(rule: &Value, rules: &mut Vec<NormalizerWrapper>) -> Result<(), String> {
    for rule in parts(rule, "normalizers").iter() {
        rules.push(match kind_of(rule) {
            Some("NFC") => NFC.into(),
            Some("NFD") => NFD.into(),
            Some("NFKC") => NFKC.into(),
            Some("NFKD") => NFKD.into(),
            Some("Lowercase") => Lowercase.into(),
            Some("Replace") if rule["pattern"]["Regex"] == SPACES && rule["content"] == " " => {
                Replace::new(ReplacePattern::Regex(SPACES.into()), " ").map_err(|e| e.to_string())?.into()
            }
            _ => return Err(not_clips("normalizer", rule)),
        });
        if rules.len() > MOST_RULES {
            return Err(format!("it has more than {MOST_RULES} normalizers"));
        }
    }
    Ok(())
}

fn pre_tokenizers(rule: &Value, rules: &mut Vec<PreTokenizerWrapper>) -> Result<(), String> {
    for rule in parts(rule, "pretokenizers").iter() {
        let flag = |name: &str| rule[name].as_bool().unwrap_or(true);
        let pattern = rule["pattern"]["Regex"].as_str();
        let is_words =
            pattern.is_some_and(|pattern| pattern == WORDS || WORDS.strip_prefix(SPECIAL_WORDS) == Some(pattern));
        let of_words = is_words && rule["behavior"] == "Removed" && rule["invert"] == true;
        rules.push(match (kind_of(rule), pattern) {
            (Some("ByteLevel"), _) => {
                ByteLevel::new(flag("add_prefix_space"), flag("trim_offsets"), flag("use_regex")).into()
            }
            (Some("Split"), Some(pattern)) if of_words => {
                let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Removed, true);
                split.map_err(|e| e.to_string())?.into()
            }
            _ => return Err(not_clips("pre_tokenizer", rule)),
        });
        if rules.len() > MOST_RULES {
            return Err(format!("it has more than {MOST_RULES} pre-tokenizers"));
        }
    }
    Ok(())
}
