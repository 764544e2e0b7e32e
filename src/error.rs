//! The library's one error type. Every variant says what was wrong, with the value, and what to do.

use std::path::{Path, PathBuf};

/// What went wrong in the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "create", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file is there and is not what its name says.
    #[error("{} is not a usable {kind}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be: "safetensors file", "JSON file", ...
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// A field of a configuration file has a value that cannot be used.
    #[error("{component} config: `{field}` is {value}; {expected}")]
    Config {
        /// Which component's configuration: "unet", "vae", "scheduler", ...
        component: String,
        /// The field's name.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What it may be, or what to do instead.
        expected: String,
    },

    /// The tensors of a checkpoint are not those of the model.
    #[error(transparent)]
    Weights(#[from] Box<crate::checkpoints::WeightReport>),

    /// A request or an argument that cannot be carried out.
    #[error("{what} is {value}; {fix}")]
    Invalid {
        /// The option or argument.
        what: String,
        /// Its value.
        value: String,
        /// What to do instead.
        fix: String,
    },

    /// The network or the decoder gave values that are not numbers.
    #[error("{stage} gave values that are not finite ({detail}); {fix}")]
    NotFinite {
        /// The stage: "denoising step 3 of 25", "VAE decoder", ...
        stage: String,
        /// How many, where.
        detail: String,
        /// What to do.
        fix: &'static str,
    },

    /// Training went astray.
    #[error(
        "training step {step} at learning rate {learning_rate:e}: {what}; the last good checkpoint is {checkpoint}; \
         train with a lower --learning-rate, a longer --warmup-steps or a smaller --grad-clip"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// Its learning rate.
        learning_rate: f64,
        /// What is not finite.
        what: String,
        /// Where the last good checkpoint is, or "none".
        checkpoint: String,
    },

    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,

    /// The tokenizer's files cannot be used.
    #[error("the tokenizer of {} cannot be built: {reason}", folder.display())]
    Tokenizer {
        /// The folder that holds its files.
        folder: PathBuf,
        /// Why.
        reason: String,
    },

    /// An operation of the tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `action` on `path`, for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::Malformed`] file.
    pub fn malformed(kind: &'static str, path: &Path, reason: impl ToString) -> Self {
        Self::Malformed { path: path.to_path_buf(), kind, reason: reason.to_string() }
    }

    /// An [`Error::Invalid`] argument.
    pub fn invalid(what: impl Into<String>, value: impl ToString, fix: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), value: value.to_string(), fix: fix.into() }
    }
}
