//! The library's one error type. Every variant says what was wrong, with the value, and what to do.
//!
//! Messages speak no interface's language: where one advises another value of a request's option it names the option's field
//! in backquotes, as in "take \`dtype\` f32", and [`Error::message`] lets an interface put its own name there: a flag, a
//! form's label.

use std::path::{Path, PathBuf};

/// Whose fault an [`Error`] is, and so who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for cannot be done: ask for something else.
    Request,
    /// What was named is not there, or not for who asks: a file, a folder, a model on the hub.
    Missing,
    /// A model, or what goes on top of one, is damaged, incomplete, of a kind that is not covered, or does not go with the rest.
    Model,
    /// A file, folder or address cannot be read or written (no permission, a full disk, no connection), or a file that is no part
    /// of a model is not what it should be.
    File,
    /// The machine lacks a device or an instruction set, or the device failed.
    Device,
    /// The device has not enough memory, or the system has not for a file. Where that of the CPU runs out while something is computed,
    /// the system ends the program.
    Memory,
    /// The caller stopped the work.
    Cancelled,
}

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
    #[error("{} is not a usable {format}: {reason}", path.display())]
    Malformed {
        /// [`ErrorKind::Model`] for a part of a model or what goes on top of one, else [`ErrorKind::File`].
        kind: ErrorKind,
        /// The file.
        path: PathBuf,
        /// What it should be: "safetensors file", "JSON file", ...
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// A field of a configuration file has a value that cannot be used.
    #[error("{component} config: `{field}` is {value}; {expected}")]
    Config {
        /// [`ErrorKind::Model`] for what the file states, [`ErrorKind::Request`] for what a request put in its place.
        kind: ErrorKind,
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

    /// Something that cannot be carried out or used, for a reason of the given kind.
    #[error("{what} is {value}; {fix}")]
    Invalid {
        /// Whose fault it is.
        kind: ErrorKind,
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
         train with a lower `learning_rate`, a longer `warmup_steps` or a smaller `grad_clip`"
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

    /// An [`Error::Malformed`] file: [`ErrorKind::Model`] for a part of a model or what goes on top of one, else [`ErrorKind::File`].
    pub fn malformed(kind: ErrorKind, format: &'static str, path: &Path, reason: impl ToString) -> Self {
        Self::Malformed { kind, path: path.to_path_buf(), format, reason: reason.to_string() }
    }

    /// A request or an argument that cannot be carried out: [`Error::Invalid`] of the kind [`ErrorKind::Request`].
    pub fn invalid(what: impl Into<String>, value: impl ToString, fix: impl Into<String>) -> Self {
        Self::unusable(ErrorKind::Request, what, value, fix)
    }

    /// Something that was named and is not there: [`Error::Invalid`] of the kind [`ErrorKind::Missing`].
    pub fn missing(what: impl Into<String>, value: impl ToString, fix: impl Into<String>) -> Self {
        Self::unusable(ErrorKind::Missing, what, value, fix)
    }

    /// An [`Error::Invalid`] of a kind.
    pub fn unusable(kind: ErrorKind, what: impl Into<String>, value: impl ToString, fix: impl Into<String>) -> Self {
        Self::Invalid { kind, what: what.into(), value: value.to_string(), fix: fix.into() }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => kind_of_io(source),
            Self::Malformed { kind, .. } | Self::Config { kind, .. } | Self::Invalid { kind, .. } => *kind,
            Self::Weights(_) | Self::Tokenizer { .. } | Self::NotFinite { .. } => ErrorKind::Model,
            Self::Diverged { .. } => ErrorKind::Request,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Tensor(error) => kind_of_tensor_error(error),
        }
    }

    /// The message, with the options that it names called as `option` says; those that it does not know stay as they are.
    ///
    /// What a configuration file calls a field is no option, even of the same name; nor is a value that somebody gave.
    pub fn message(&self, option: &dyn Fn(&str) -> Option<String>) -> String {
        match self {
            Self::Config { component, field, value, expected, .. } => {
                format!("{component} config: `{field}` is {value}; {}", with_options(expected, option))
            }
            Self::Invalid { what, value, fix, .. } => {
                format!("{} is {value}; {}", with_options(what, option), with_options(fix, option))
            }
            other => with_options(&other.to_string(), option),
        }
    }
}

fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::OutOfMemory => ErrorKind::Memory,
        _ => ErrorKind::File,
    }
}

/// Shapes, element types and indices that do not fit are those of the arguments; what a device's driver says is the device's.
fn kind_of_tensor_error(error: &candle_core::Error) -> ErrorKind {
    use candle_core::Error as Tensor;
    match error {
        Tensor::Context { inner, .. } | Tensor::WithPath { inner, .. } | Tensor::WithBacktrace { inner, .. } => {
            kind_of_tensor_error(inner)
        }
        Tensor::Cuda(_) | Tensor::Metal(_) if error.to_string().to_lowercase().contains("out of memory") => {
            ErrorKind::Memory
        }
        Tensor::Cuda(_)
        | Tensor::Metal(_)
        | Tensor::NotCompiledWithCudaSupport
        | Tensor::NotCompiledWithMetalSupport => ErrorKind::Device,
        Tensor::Io(error) => kind_of_io(error),
        _ => ErrorKind::Request,
    }
}

/// A text in which every name in backquotes that `option` knows is replaced by what it says.
pub fn with_options(text: &str, option: &dyn Fn(&str) -> Option<String>) -> String {
    // What stands in backquotes is every second part.
    let mut parts = text.split('`').enumerate().peekable();
    let mut shown = String::with_capacity(text.len());
    while let Some((i, part)) = parts.next() {
        let quoted = i % 2 == 1 && parts.peek().is_some();
        match option(part).filter(|_| quoted) {
            Some(name) => shown.push_str(&name),
            None if quoted => shown.extend(["`", part, "`"]),
            None if i % 2 == 1 => shown.extend(["`", part]),
            None => shown.push_str(part),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(name: &str) -> Option<String> {
        ["dtype", "batch_size"].contains(&name).then(|| format!("--{}", name.replace('_', "-")))
    }

    #[test]
    fn an_interface_puts_its_own_names_in() {
        let message = |text: &str| with_options(text, &flag);
        assert_eq!(message("take `dtype` f32 or `batch_size` 1"), "take --dtype f32 or --batch-size 1");
        assert_eq!(message("`tweedie inpaint` and `other`"), "`tweedie inpaint` and `other`");
        assert_eq!(message("a ` alone, `dtype"), "a ` alone, `dtype");
        assert_eq!(message("one `dtype` and `"), "one --dtype and `");
    }

    #[test]
    fn a_value_is_shown_as_it_was_given() {
        let error = Error::invalid("`dtype`", "`dtype`", "take `dtype` f32");
        assert_eq!(error.message(&flag), "--dtype is `dtype`; take --dtype f32");
        assert_eq!(error.to_string(), "`dtype` is `dtype`; take `dtype` f32");
    }

    #[test]
    fn a_configurations_field_is_no_option() {
        let error = Error::Config {
            kind: ErrorKind::Model,
            component: "unet".into(),
            field: "dtype".into(),
            value: "3".into(),
            expected: "use `dtype`".into(),
        };
        assert_eq!(error.message(&flag), "unet config: `dtype` is 3; use --dtype");
        assert_eq!(error.kind(), ErrorKind::Model);
    }

    #[test]
    fn the_systems_and_the_tensor_librarys_reasons_have_kinds() {
        use std::io::ErrorKind as Io;
        let io = |kind: Io| Error::io("read", Path::new("weights"))(kind.into()).kind();
        assert_eq!(io(Io::OutOfMemory), ErrorKind::Memory);
        assert_eq!([Io::StorageFull, Io::NotFound, Io::PermissionDenied].map(io), [ErrorKind::File; 3]);

        let tensor = |error: candle_core::Error| Error::from(error).kind();
        let cuda = |reason: &str| candle_core::Error::Cuda(reason.into());
        assert_eq!(tensor(cuda("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")), ErrorKind::Memory);
        assert_eq!(tensor(cuda("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)").context("step 3")), ErrorKind::Device);
        assert_eq!(tensor(candle_core::Error::EmptyTensor { op: "max" }.with_path("x").bt()), ErrorKind::Request);
        assert_eq!(tensor(std::io::Error::from(Io::NotFound).into()), ErrorKind::File);
    }
}
