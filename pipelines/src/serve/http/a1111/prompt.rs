//! Prompts as that program reads them.

use serde_json::{Value, json};

/// A prompt without `<lora:NAME:WEIGHT>`, and the LoRAs that it names so.
pub fn without_loras(prompt: &str) -> (String, Vec<Value>) {
    let (mut text, mut loras, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some(start) = rest.find("<lora:") {
        let Some(length) = rest[start..].find('>') else { break };
        let inside = &rest[start + "<lora:".len()..start + length];
        let mut parts = inside.split(':');
        let name = parts.next().unwrap_or_default().trim();
        // The first weight is the network's; one for the text encoder may follow.
        let weight = parts.next().map_or(Some(1.0), |weight| weight.trim().parse::<f64>().ok());
        text.push_str(&rest[..start]);
        match weight.filter(|_| !name.is_empty()) {
            Some(weight) => loras.push(json!({"name": name, "weight": weight})),
            None => text.push_str(&rest[start..=start + length]),
        }
        rest = &rest[start + length + 1..];
    }
    text.push_str(rest);
    (text.trim().to_owned(), loras)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loras_are_taken_out_of_a_prompt() {
        let (text, loras) = without_loras("a fox <lora:ink:0.8>, <lora:b> at night <lora:c:0.5:0.2>");
        assert_eq!(text, "a fox ,  at night");
        assert_eq!(
            loras,
            [
                json!({"name": "ink", "weight": 0.8}),
                json!({"name": "b", "weight": 1.0}),
                json!({"name": "c", "weight": 0.5})
            ]
        );
        for plain in ["a < b", "<lora:", "<lora:x:y>", "<hypernet:a:1>", "ä <lora::1>"] {
            assert_eq!(without_loras(plain), (plain.to_owned(), Vec::new()));
        }
    }
}
