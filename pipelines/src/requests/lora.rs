//! LoRAs of a request.

use crate::requests::kind::OptionKind;
use crate::requests::options::{Options, json, option, options, serde_by_options};
use crate::requests::values::OptionValue;
use serde_json::Value;
use std::path::PathBuf;

options! {
    /// A LoRA that acts in one request, beside the model's weights, which stay as they are. Those that a model is loaded
    /// with are merged into its weights: see [`crate::LoraChoice`].
    #[derive(Debug, Clone, PartialEq)]
    pub struct LoraRequest {
        options {
            /// The file: safetensors, or a pickle of PyTorch's.
            name: PathBuf = PathBuf::new() => json().required();
            /// What its change is multiplied by.
            weight: f64 = 1.0 => option(OptionKind::Number, "WEIGHT").always_recorded();
        }
    }
}

impl Default for LoraRequest {
    fn default() -> Self {
        Self::of()
    }
}

serde_by_options!(LoraRequest);

impl OptionValue for LoraRequest {
    fn expected() -> String {
        "an object with the name of a file, and its weight".into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        let mut lora = Self::default();
        lora.read(value.as_object()?.clone()).ok()?;
        (!lora.name.as_os_str().is_empty()).then_some(lora)
    }

    fn to_json(&self) -> Value {
        self.write().into()
    }
}
