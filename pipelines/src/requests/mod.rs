//! What is asked for.
//!
//! An option is declared once, by [`options::options!`]: a field with its documentation, its default, and how text
//! becomes its value. From that follow its name and help on a command line, its key in JSON and its key in a picture's
//! record; what is read back from a record is the request again. Requests know nothing of models:
//! [`crate::settings`] settles them.

pub(crate) mod control;
pub(crate) mod fast;
pub(crate) mod image_to_image;
pub(crate) mod inpaint;
pub(crate) mod kind;
pub(crate) mod lora;
pub(crate) mod options;
pub(crate) mod request;
pub(crate) mod text_to_image;
pub(crate) mod values;
pub(crate) mod xl;

#[cfg(test)]
mod tests;
