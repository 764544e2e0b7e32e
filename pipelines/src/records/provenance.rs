//! What a picture was made from, and by what: all of its record that is no option of a request.

use crate::requests::options::{json, options, serde_by_options};
use crate::requests::values::{OptionValue, read, values_by_serde, write};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The form of records that this version writes, and the highest that it reads.
///
/// A higher number says that what a record holds means something else, or that something is done which a record of a
/// lower one promised in vain: from 2 on, guidance intervals and schedules are heeded under every scheduler, and LoRAs
/// are merged in full precision.
pub(crate) const RECORD_FORM: u64 = 2;

/// A file that a picture was made from, as its record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Its name, without its folder.
    pub name: String,
    /// The SHA-256 of its bytes.
    pub sha256: String,
}

values_by_serde! {
    InputRecord: "an object with name and sha256";
    Value: "JSON";
}

options! {
    /// The part of a record that is no option.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Provenance {
        options {
            /// The program and its version.
            program: String = String::new() => json().always_recorded();
            /// The form of the record; the first had no number.
            record: u64 = 1 => json();
            /// The command that makes such pictures.
            kind: String = String::new() => json().always_recorded();
            /// The number format that the weights were rounded to.
            dtype: String = String::new() => json().always_recorded();
            /// What the model is called.
            model: String = String::new() => json().always_recorded();
            /// The SHA-256 of each weight file, by its name in the model's folder.
            weights_sha256: Map<String, Value> = Map::new() => json().always_recorded();
            /// What its autoencoder is called, if it is another model's.
            vae: Option<String> = None => json();
            /// How many times the picture was enlarged when it was saved.
            scale: Option<u32> = None => json();
            /// LoRAs: name, weight and SHA-256 of each. One that acted beside the weights says so in "applied"; others were
            /// merged into them.
            loras: Vec<Value> = Vec::new() => json();
            /// Textual inversions: name, token and SHA-256 of each.
            embeddings: Vec<Value> = Vec::new() => json();
            /// Control models: name and SHA-256 of each, its picture, and how that acted.
            controls: Vec<Value> = Vec::new() => json();
            /// The picture that it was made from.
            image: Option<InputRecord> = None => json();
            /// The mask.
            mask: Option<InputRecord> = None => json();
        }
    }
}

impl Default for Provenance {
    fn default() -> Self {
        Self::of()
    }
}

serde_by_options!(Provenance);
