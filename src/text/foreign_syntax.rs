//! What means something in prompts of A1111's web UI and is words here.

/// Extra networks, as their tags in prompts begin.
const NETWORKS: [&str; 3] = ["<lora:", "<lyco:", "<hypernet:"];

/// Of each kind so many are told at most: brackets within brackets would be told again and again.
const MOST: usize = 16;

/// What a prompt has that other programs would act on, each as it is written, in its order: the first 16 of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignSyntax {
    /// Tags of networks to add: `<lora:NAME:WEIGHT>`, `<lyco:...>`, `<hypernet:...>`.
    pub networks: Vec<String>,
    /// The word `AND` between prompts that are to be composed, texts that change at a step, `[a:b:0.5]`, and those that
    /// alternate, `[a|b]`.
    pub schedules: Vec<String>,
    /// The first weight that cannot be meant as words: with a number, `(word:1.3)`, in double brackets, or in square ones.
    pub weights: Option<String>,
}

impl ForeignSyntax {
    /// Looks for it in a prompt.
    pub fn of(prompt: &str) -> Self {
        Self { networks: networks(prompt), schedules: schedules(prompt), weights: weights(prompt) }
    }
}

fn networks(prompt: &str) -> Vec<String> {
    let lower = prompt.to_ascii_lowercase();
    let tags_end = prompt.rfind('>').unwrap_or(0);
    let tag = |(start, _): (usize, char)| {
        NETWORKS.iter().find(|network| lower[start..].starts_with(*network))?;
        let length = prompt[start..].find('>')?;
        Some(prompt[start..=start + length].to_owned())
    };
    prompt.char_indices().take_while(|&(start, _)| start < tags_end).filter_map(tag).take(MOST).collect()
}

/// A bracket that is open.
struct Open {
    at: usize,
    square: bool,
    /// Where its own colons and bars are, not those of brackets inside.
    colons: Vec<usize>,
    bars: usize,
}

fn schedules(prompt: &str) -> Vec<String> {
    // With their places, since a bracket is known only once it closes.
    let mut found: Vec<(usize, &str)> = words(prompt, "AND").collect();
    let mut open: Vec<Open> = Vec::new();
    let mut characters = prompt.char_indices();
    while let Some((at, c)) = characters.next() {
        match (c, open.last_mut()) {
            ('\\', _) => {
                characters.next();
            }
            ('[' | '(', _) => open.push(Open { at, square: c == '[', colons: Vec::new(), bars: 0 }),
            (':', Some(bracket)) => bracket.colons.push(at),
            ('|', Some(bracket)) => bracket.bars += 1,
            (']' | ')', Some(bracket)) if bracket.square == (c == ']') => {
                let number = |&colon: &usize| prompt[colon + 1..at].trim().parse::<f64>().is_ok();
                let changes = bracket.colons.len() <= 2 && bracket.colons.last().is_some_and(number);
                if bracket.square && (changes || bracket.bars > 0) {
                    found.push((bracket.at, &prompt[bracket.at..=at]));
                }
                open.pop();
            }
            _ => {}
        }
    }
    found.sort_unstable();
    found.into_iter().take(MOST).map(|(_, text)| text.to_owned()).collect()
}

fn weights(prompt: &str) -> Option<String> {
    let bytes = prompt.as_bytes();
    let mut open: Vec<usize> = Vec::new();
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            // A backslash makes a bracket a letter.
            b'(' | b'[' if at == 0 || bytes[at - 1] != b'\\' => open.push(at),
            b')' | b']' if at > 0 && bytes[at - 1] != b'\\' => {
                let Some(start) = open.pop() else { continue };
                let inside = &prompt[start + 1..at];
                let number = inside.rsplit_once(':').is_some_and(|(_, number)| number.trim().parse::<f64>().is_ok());
                let doubled = inside.starts_with('(') && inside.ends_with(')');
                let square = bytes[start] == b'[' && byte == b']' && !inside.contains([':', '|']) && !inside.is_empty();
                if square || byte == b')' && bytes[start] == b'(' && (number || doubled) {
                    return Some(prompt[start..=at].to_owned());
                }
            }
            _ => {}
        }
    }
    None
}

/// Where a word stands by itself.
pub(super) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let alone = move |&(at, found): &(usize, &str)| {
        let after = &text[at + found.len()..];
        !text[..at].chars().next_back().is_some_and(part_of_word) && !after.chars().next().is_some_and(part_of_word)
    };
    text.match_indices(word).filter(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_act_on_is_found_as_it_is_written() {
        let found = ForeignSyntax::of(
            "a fox <lora:ink:0.8> AND a [cat:dog:0.5] <LYCO:x> [red|green] [fur::10] [x:0.3] <hypernet:h:1>",
        );
        assert_eq!(found.networks, ["<lora:ink:0.8>", "<LYCO:x>", "<hypernet:h:1>"]);
        assert_eq!(found.schedules, ["AND", "[cat:dog:0.5]", "[red|green]", "[fur::10]", "[x:0.3]"]);
        let nested = ForeignSyntax::of("[a [b|c]:d:7] (é AND [(ü:1.2):x:2])");
        assert_eq!(nested.schedules, ["[a [b|c]:d:7]", "[b|c]", "AND", "[(ü:1.2):x:2]"]);
    }

    #[test]
    fn of_many_the_first_are_told() {
        let depth = 10_000;
        let nested = ForeignSyntax::of(&("[a|".repeat(depth) + &"]".repeat(depth)));
        assert_eq!((nested.schedules.len(), nested.schedules[15].len()), (MOST, 4 * (depth - 15)));
        let tags = ForeignSyntax::of(&("<lora:".repeat(depth) + ">"));
        assert_eq!((tags.networks.len(), tags.networks[1].len()), (MOST, 6 * (depth - 1) + 1));
        assert_eq!(ForeignSyntax::of(&"<lora:".repeat(depth)), ForeignSyntax::default());
    }

    #[test]
    fn weights_and_words_are_none() {
        for prompt in [
            "(a:1.3) [b] [(c:1.2)] ((d))",
            r"\[a:b:0.5\] \(a|b\)",
            "a | b: 3",
            "[ratio 3:two]",
            "[3:2:1:0]",
            "SAND BAND ANDROID and",
            "<lora ink> <thing> a < b",
            "<lora:ink",
            "unclosed [a|b",
            "(a|b)",
            "",
        ] {
            let ForeignSyntax { networks, schedules, .. } = ForeignSyntax::of(prompt);
            assert_eq!((networks, schedules), (Vec::new(), Vec::new()), "{prompt}");
        }
    }

    #[test]
    fn weights_that_cannot_be_words_are_found() {
        for (prompt, found) in [
            ("a (fluffy:1.3) cat, [blurry]", Some("(fluffy:1.3)")),
            ("a cat, [blurry]", Some("[blurry]")),
            ("a ((ü)) cat", Some("((ü))")),
            ("a cat (felis catus), [a:b:0.5] (at 12:30 (noon)) \\(x:1.2\\) [] ) (", None),
            ("(ratio 16:9)", Some("(ratio 16:9)")),
        ] {
            assert_eq!(ForeignSyntax::of(prompt).weights.as_deref(), found, "{prompt}");
        }
    }
}
