//! Prompts with weights and of any length, in the syntax of A1111's web UI.
//!
//! `(word)` is worth 1.1, `[word]` 1/1.1, `(word:1.3)` 1.3; they nest, and a backslash takes a bracket for a
//! character. `BREAK` starts a new chunk. Each chunk of as many tokens as the text encoder takes is encoded by
//! itself, and the network sees all of them.

use super::Tokenizer;
use super::foreign_syntax::words;
use crate::Result;
use candle_core::{DType, Tensor};

/// What a pair of round brackets is worth; square ones its inverse.
const BRACKET: f64 = 1.1;

/// Brackets of one kind within one another that count: the weight in more of them is beyond what f32 has, and each of them costs time for
/// all that is in it.
const DEEPEST: usize = 1000;

/// A chunk is cut at a comma if there is one among so many of its last tokens.
const COMMA_BACKTRACK: usize = 20;

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text and its weight.
    Text(String, f64),
    /// The end of a chunk.
    Break,
}

/// A chunk of a prompt as the text encoder takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedChunk {
    /// Start, text, end and padding.
    pub ids: Vec<u32>,
    /// The weight of each.
    pub weights: Vec<f32>,
}

impl WeightedChunk {
    /// Multiplies the encoder's output by the weights and brings its mean back to what it was.
    ///
    /// # Shapes
    /// `hidden`: `[1, tokens, width]`; the result is alike.
    ///
    /// # Errors
    /// If there are not as many tokens as weights.
    pub fn apply(&self, hidden: &Tensor) -> Result<Tensor> {
        if self.weights.iter().all(|&weight| weight == 1.0) {
            return Ok(hidden.clone());
        }
        // In half precision the sums of the means would be far off.
        let half = matches!(hidden.dtype(), DType::F16 | DType::BF16);
        let wide = if half { hidden.to_dtype(DType::F32)? } else { hidden.clone() };
        let weights = Tensor::new(self.weights.as_slice(), wide.device())?.to_dtype(wide.dtype())?;
        let weighted = wide.broadcast_mul(&weights.reshape((1, self.weights.len(), 1))?)?;
        let factor = (wide.mean_all()? / weighted.mean_all()?)?;
        Ok(weighted.broadcast_mul(&factor)?.to_dtype(hidden.dtype())?)
    }
}

/// The chunks of a prompt, at least one.
///
/// # Errors
/// If the text cannot be tokenized.
pub fn weighted_chunks(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<WeightedChunk>> {
    let room = tokenizer.max_length() - 2;
    let comma = tokenizer.token_id(",</w>");
    let mut chunks: Vec<Vec<(u32, f64)>> = Vec::new();
    let mut current: Vec<(u32, f64)> = Vec::new();
    for piece in parse_weights(prompt) {
        let Piece::Text(text, weight) = piece else {
            chunks.push(std::mem::take(&mut current));
            continue;
        };
        for ids in tokenizer.encode_words(&text)? {
            if current.len() == room {
                let last_comma = current.iter().rposition(|&(id, _)| Some(id) == comma);
                let is_comma = comma.is_some_and(|comma| ids == [comma]);
                let cut = last_comma.map(|at| at + 1).filter(|&at| !is_comma && room + 1 - at <= COMMA_BACKTRACK);
                let rest = current.split_off(cut.unwrap_or(room));
                chunks.push(std::mem::replace(&mut current, rest));
            }
            // A learned word of several vectors stays whole where one chunk has room for it.
            if current.len() + ids.len() > room && ids.len() <= room {
                chunks.push(std::mem::take(&mut current));
            }
            for id in ids {
                if current.len() == room {
                    chunks.push(std::mem::take(&mut current));
                }
                current.push((id, weight));
            }
        }
    }
    if !current.is_empty() || chunks.is_empty() {
        chunks.push(current);
    }
    let padded = chunks.into_iter().map(|tokens| {
        let ids: Vec<u32> = tokens.iter().map(|&(id, _)| id).collect();
        let mut weights = vec![1.0; tokenizer.max_length()];
        for (slot, (_, weight)) in weights[1..].iter_mut().zip(tokens) {
            *slot = weight as f32;
        }
        WeightedChunk { ids: tokenizer.padded(&ids), weights }
    });
    Ok(padded.collect())
}

/// Splits a prompt by its brackets; neighbours of one weight are joined. Brackets that lie within 1000 others of their kind are text.
pub fn parse_weights(prompt: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        match c {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|next| "()[]\\".contains(*next));
                length += escaped.map_or(0, char::len_utf8);
                add_text(&mut pieces, &rest[1..length]);
            }
            '(' if round.len() < DEEPEST => round.push(pieces.len()),
            '[' if square.len() < DEEPEST => square.push(pieces.len()),
            ':' => match explicit_weight(rest).zip(round.last().copied()) {
                Some(((weight, weight_length), open)) => {
                    round.pop();
                    multiply(&mut pieces[open..], weight);
                    length = weight_length;
                }
                None => add_text(&mut pieces, ":"),
            },
            ')' if !round.is_empty() => multiply(&mut pieces[round.pop().unwrap_or(0)..], BRACKET),
            ']' if !square.is_empty() => multiply(&mut pieces[square.pop().unwrap_or(0)..], 1.0 / BRACKET),
            _ => {
                length = rest[length..].find(['\\', '(', ')', '[', ']', ':']).map_or(rest.len(), |end| end + length);
                add_text(&mut pieces, &rest[..length]);
            }
        }
        rest = &rest[length..];
    }
    round.into_iter().for_each(|open| multiply(&mut pieces[open..], BRACKET));
    square.into_iter().for_each(|open| multiply(&mut pieces[open..], 1.0 / BRACKET));
    joined(pieces)
}

/// The weight and the length of `:1.3)`.
fn explicit_weight(text: &str) -> Option<(f64, usize)> {
    let close = text.find(')')?;
    let number = text[1..close].trim();
    let plain = number.trim_start_matches(['+', '-']).chars().all(|c| c.is_ascii_digit() || c == '.');
    let weight = number.parse().ok().filter(|_| plain)?;
    Some((weight, close + 1))
}

/// Adds text of weight one, split at the word `BREAK`.
fn add_text(pieces: &mut Vec<Piece>, text: &str) {
    let mut rest = text;
    while let Some((at, _)) = words(rest, "BREAK").next() {
        pieces.push(Piece::Text(rest[..at].trim_end().into(), 1.0));
        pieces.push(Piece::Break);
        rest = rest[at + "BREAK".len()..].trim_start();
    }
    pieces.push(Piece::Text(rest.into(), 1.0));
}

fn multiply(pieces: &mut [Piece], factor: f64) {
    for piece in pieces {
        if let Piece::Text(_, weight) = piece {
            *weight *= factor;
        }
    }
}

fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (out.last_mut(), &piece) {
            (_, Piece::Text(text, _)) if text.is_empty() => {}
            (Some(Piece::Text(before, weight)), Piece::Text(text, same)) if weight == same => before.push_str(text),
            _ => out.push(piece),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(prompt: &str) -> Vec<(String, f64)> {
        let show = |piece| match piece {
            Piece::Text(text, weight) => (text, weight),
            Piece::Break => ("BREAK".into(), -1.0),
        };
        parse_weights(prompt).into_iter().map(show).collect()
    }

    /// The examples that A1111 documents its parser with.
    #[test]
    fn the_documented_examples() {
        let check = |prompt: &str, expected: &[(&str, f64)]| {
            let got = parsed(prompt);
            let same = got.len() == expected.len()
                && got.iter().zip(expected).all(|((t, w), (text, weight))| t == text && (w - weight).abs() < 1e-9);
            assert!(same, "{prompt}: {got:?}");
        };
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn brackets_within_a_thousand_are_text() {
        for (bracket, factor) in [("(", BRACKET), ("[", 1.0 / BRACKET)] {
            let got = parsed(&(bracket.repeat(DEEPEST + 2) + "a"));
            let expected = factor.powi(DEEPEST as i32);
            let [(text, weight)] = &got[..] else { panic!("{got:?}") };
            assert!(*text == format!("{bracket}{bracket}a") && (weight / expected - 1.0).abs() < 1e-9, "{got:?}");
        }
    }

    #[test]
    fn breaks_colons_and_stray_brackets() {
        assert_eq!(parsed("a BREAK b"), [("a".into(), 1.0), ("BREAK".into(), -1.0), ("b".into(), 1.0)]);
        assert_eq!(parsed("BREAKFAST"), [("BREAKFAST".into(), 1.0)]);
        assert_eq!(parsed("ratio 3:2, a) b]"), [("ratio 3:2, a) b]".into(), 1.0)]);
        assert_eq!(parsed("(é:2)"), [("é".into(), 2.0)]);
        assert_eq!(parsed(""), []);
        assert_eq!(parsed("\\"), []);
    }
}
