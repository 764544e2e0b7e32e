//! Text for the user: results on stdout, everything else on stderr.
//!
//! Names in files, prompts in pictures and what a server says are other people's words: here, where all text leaves the program,
//! characters that would move a terminal's cursor, or turn the direction of what stands around them, are escaped.

use anyhow::Context;
use std::io::{ErrorKind, Write};
use terminal_size::terminal_size_of;

/// A result, of one line or several, or JSON. That nobody reads it any more is no failure.
pub fn result(text: &str) -> anyhow::Result<()> {
    // In JSON an escape of this form is the character itself.
    let lines: Vec<String> = text.split('\n').map(escaped).collect();
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", lines.join("\n")).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// A result that is no text.
pub fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// A result of lines, each of which stays one.
pub fn lines(lines: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
    result(&lines.into_iter().map(|line| escaped(&line)).collect::<Vec<_>>().join("\n"))
}

/// A warning of the library's.
pub fn warning(text: &str) {
    remark(&format!("warning: {}", super::flags::in_text(text)));
}

/// A remark, which a terminal shows in lines of whole words, and anything else in one line. If it cannot be shown, the work goes
/// on.
pub fn remark(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let width = terminal_size_of(&stderr).map(|(width, _)| usize::from(width.0));
    let text = escaped(text);
    let _ = writeln!(stderr, "{}", width.map_or_else(|| text.clone(), |width| in_lines(&text, width)));
}

/// A text in lines of whole words of at most so many characters. A word that is longer has a line of its own.
fn in_lines(text: &str, width: usize) -> String {
    let mut lines = String::with_capacity(text.len());
    let mut taken = 0;
    for word in text.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if taken > 0 && taken + length > width {
            lines.truncate(lines.trim_end_matches(' ').len());
            lines.push('\n');
            taken = 0;
        }
        if taken == 0 && length == 0 && !lines.is_empty() {
            continue;
        }
        lines.push_str(word);
        taken += word.chars().count();
    }
    lines
}

/// A text of one line, every character of which takes its place in the line: others are written as JSON does, `\u001b`.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Embeddings, overrides and isolates of direction.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => escape(c, &mut shown),
            c if c.is_control() => escape(c, &mut shown),
            c => shown.push(c),
        }
    }
    shown
}

fn escape(c: char, shown: &mut String) {
    shown.push_str(&format!("\\u{:04x}", u32::from(c)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(in_lines("one two three", 7), "one two\nthree");
        assert_eq!(in_lines("one two three", 8), "one two\nthree");
        assert_eq!(in_lines("incomprehensible word", 4), "incomprehensible\nword");
        assert_eq!(in_lines("ö ö  ö", 3), "ö ö\nö");
        assert_eq!(in_lines("", 3), "");
    }

    #[test]
    fn control_characters_are_shown_and_all_else_is_left() {
        let text = "a\x1b[2J\r\nb\t\x7f\u{9b}31m\u{202e}x";
        assert_eq!(escaped(text), "a\\u001b[2J\\u000d\\u000ab\\u0009\\u007f\\u009b31m\\u202ex");
        // Letters of any script, and what joins emoji.
        let text = "Öl, 日本, שלום, 👩\u{200d}🎨";
        assert_eq!(escaped(text), text);
    }

    #[test]
    fn escapes_in_json_stand_for_the_characters() -> Result<(), serde_json::Error> {
        let value = serde_json::json!({"name": "a\u{9b}\x1b\u{202e}\n"});
        let shown = escaped(&value.to_string());
        assert!(shown.chars().all(|c| !c.is_control()));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown)?, value);
        Ok(())
    }
}
