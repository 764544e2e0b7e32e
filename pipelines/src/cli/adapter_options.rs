//! What is put on top of a model.

use clap::Args;
use std::path::{Path, PathBuf};
use tweedie_pipelines::{Adapters, EmbeddingChoice, LoraChoice};

/// The options of every command that makes pictures from a text.
#[derive(Debug, Args)]
pub struct AdapterOptions {
    /// Add a LoRA (also LoHa, LoKr, DoRA) in safetensors form, its change times WEIGHT [default: 1]; repeat it for more
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = lora)]
    lora: Vec<LoraChoice>,

    /// Add a learned word (textual inversion) in safetensors form, TOKEN in prompts [default: the file's]; repeat it for
    /// more
    #[arg(long, value_name = "FILE[:TOKEN]", value_parser = embedding)]
    embedding: Vec<EmbeddingChoice>,
}

impl AdapterOptions {
    /// The adapters that they name.
    pub fn adapters(&self) -> Adapters {
        Adapters { loras: self.lora.clone(), embeddings: self.embedding.clone() }
    }
}

fn lora(text: &str) -> Result<LoraChoice, String> {
    let (path, weight) = match split_last(text) {
        Some((path, weight)) => {
            let weight =
                weight.parse().map_err(|_| format!("{weight:?} is not a weight; give a number after the colon"))?;
            (path, weight)
        }
        None => (text, 1.0),
    };
    Ok(LoraChoice { path: PathBuf::from(path), weight })
}

fn embedding(text: &str) -> Result<EmbeddingChoice, String> {
    let (path, token) = split_last(text).map_or((text, None), |(path, token)| (path, Some(token)));
    if token.is_some_and(|token| token.trim().is_empty()) {
        return Err("there is no token after the colon".into());
    }
    Ok(EmbeddingChoice { path: PathBuf::from(path), token: token.map(Into::into) })
}

/// Splits `FILE:VALUE` at the last colon, unless the whole is a file's path or the colon is a Windows drive's.
fn split_last(text: &str) -> Option<(&str, &str)> {
    let (path, value) = text.rsplit_once(':')?;
    let drive = path.len() == 1 && value.starts_with(['\\', '/']);
    (!path.is_empty() && !drive && !Path::new(text).exists()).then_some((path, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_follows_the_last_colon() {
        let parsed = |text: &str| lora(text).map(|lora| (lora.path.display().to_string(), lora.weight));
        assert_eq!(parsed("a.safetensors"), Ok(("a.safetensors".into(), 1.0)));
        assert_eq!(parsed("a:b.safetensors:-0.5"), Ok(("a:b.safetensors".into(), -0.5)));
        assert_eq!(parsed("C:\\a.safetensors"), Ok(("C:\\a.safetensors".into(), 1.0)));
        assert_eq!(parsed("C:\\a.safetensors:2"), Ok(("C:\\a.safetensors".into(), 2.0)));
        assert!(parsed("a.safetensors:half").is_err_and(|message| message.contains("half")));
    }
}
