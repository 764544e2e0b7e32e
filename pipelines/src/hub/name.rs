//! How a model on the hub, or a file of it, is called.

use std::fmt;
use std::str::FromStr;

/// The revision that is meant if none is said.
const MAIN: &str = "main";

/// The longest part of a name.
const LONGEST: usize = 96;

/// What the names of files with weights end in: these and no others can be named alone.
const WEIGHTS: [&str; 6] = [".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin"];

/// `owner/name` or `owner/name/FILE`, where a file of weights is meant alone, and `@revision` after it if that is not
/// `main`; a revision is a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubName {
    owner: String,
    name: String,
    file: Option<String>,
    revision: String,
}

impl HubName {
    /// `owner/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The path of the file that is meant alone.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The same model at another revision.
    #[must_use]
    pub(super) fn at(mut self, revision: &str) -> Self {
        self.revision = revision.into();
        self
    }

    pub(super) fn repository(&self) -> hf_hub::Repo {
        hf_hub::Repo::with_revision(self.id(), hf_hub::RepoType::Model, self.revision.clone())
    }

    /// Its folder in the cache.
    pub(super) fn folder(&self) -> String {
        self.repository().folder_name()
    }

    /// The model whose folder in the cache is called so.
    pub(super) fn of_folder(folder: &str) -> Option<Self> {
        let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
        format!("{owner}/{name}").parse().ok()
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != MAIN { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

impl FromStr for HubName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("{text:?} is not owner/name or owner/name/FILE.safetensors, with or without @revision");
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, rest) = id.split_once('/').ok_or_else(fail)?;
        let (name, file) = rest.split_once('/').map_or((rest, None), |(name, file)| (name, Some(file)));
        // The hub has no name with two hyphens or dots in a row; in the cache two hyphens separate owner and name.
        let is_part = |part: &str| is_file_name(part) && !part.contains("--") && !part.contains("..");
        let is_file = |file: &str| is_weights(file) && file.split('/').all(is_file_name);
        // What ends as files do is a file that is not there.
        if !is_part(owner) || !is_part(name) || is_weights(name) || !file.is_none_or(is_file) {
            return Err(fail());
        }
        if !revision.split('/').all(is_file_name) {
            return Err(fail());
        }
        let file = file.map(str::to_owned);
        Ok(Self { owner: owner.into(), name: name.into(), file, revision: revision.into() })
    }
}

/// Whether a name ends as those of files with weights do.
pub(super) fn is_weights(name: &str) -> bool {
    WEIGHTS.iter().any(|ending| name.ends_with(ending))
}

/// Whether a text can be one step of a path that stays in its folder, on every system.
pub(super) fn is_file_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    !text.is_empty() && text.len() <= LONGEST && !text.starts_with(['.', '-']) && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() -> Result<(), String> {
        for (text, id, revision) in [("a/b", "a/b", "main"), ("Some-One/sd_1.5@fp16", "Some-One/sd_1.5", "fp16")] {
            let name: HubName = text.parse()?;
            assert_eq!((name.id().as_str(), name.revision()), (id, revision));
            assert_eq!(name.to_string(), text);
            assert_eq!(HubName::of_folder(&name.folder()).map(|name| name.id()).as_deref(), Some(id));
        }
        assert_eq!("a/b@refs/pr/1".parse::<HubName>()?.revision(), "refs/pr/1");
        for (text, file) in [("a/b/c.safetensors", "c.safetensors"), ("a/b/c/d_1.5.pt@refs/pr/1", "c/d_1.5.pt")] {
            let name: HubName = text.parse()?;
            assert_eq!((name.id().as_str(), name.file()), ("a/b", Some(file)));
            assert_eq!(name.to_string(), text);
        }
        Ok(())
    }

    #[test]
    fn what_could_lead_out_of_the_cache_is_no_name() {
        let wrong = [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@x/../../y",
            "a/b@/x",
            "./b",
            "a\\b/c",
            "a--b/c",
            "a/b--c",
            "a/b c",
            "a/b@-x",
            "C:/x",
            "a/b\0",
            "a/b.safetensors",
            "a/b/c.json",
            "a/b/../c.safetensors",
            "a/b//c.safetensors",
            "a/b/.safetensors",
            "a/b/c.safetensors@../x",
        ];
        for text in wrong {
            assert!(text.parse::<HubName>().is_err(), "{text:?}");
        }
    }
}
