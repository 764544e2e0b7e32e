//! Files of low-rank factors, as other programs write and read them.

use super::LoraTarget;
use crate::checkpoints::safetensors_bytes;
use crate::files::write_synced;
use crate::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What follows a weight's name in the names of its factors: those of PEFT, and those of kohya's scripts.
const FACTORS: [(&str, &str); 2] = [(".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")];

/// How the tensors of a LoRA's file are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraForm {
    /// `lora_unet_mid_block_..._to_q.lora_down.weight`, with an `alpha` for each weight: kohya's scripts, A1111's web UI and all that
    /// followed them.
    Kohya,
    /// `unet.mid_block....to_q.lora_A.weight`, with the settings as the file's metadata: PEFT and diffusers.
    Peft,
}

/// A LoRA to be written.
#[derive(Debug)]
pub struct WrittenLora<'a> {
    /// The model that it is for.
    pub target: &'a LoraTarget,
    /// The factors, called as PEFT calls them: `COMPONENT.WEIGHT.lora_A.weight`, `[rank, in]` or `[rank, in, height, width]`, and
    /// `.lora_B.weight`, `[out, rank]` or `[out, rank, 1, 1]`.
    pub factors: BTreeMap<String, Tensor>,
    /// The rank of all of them.
    pub rank: usize,
    /// What their products are multiplied by, times the rank.
    pub alpha: f64,
    /// What else kohya's form says of it: names that begin with `ss_`.
    pub metadata: BTreeMap<String, String>,
}

impl WrittenLora<'_> {
    /// Writes a safetensors file and waits until it is on the disk.
    ///
    /// # Errors
    /// If a factor belongs to no component of the target, or the file cannot be written.
    pub fn write(&self, form: LoraForm, path: &Path) -> Result<()> {
        let (tensors, metadata) = match form {
            LoraForm::Kohya => (self.kohya_tensors()?, self.metadata.clone()),
            LoraForm::Peft => (self.factors.clone(), self.peft_metadata()?),
        };
        let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().chain(metadata).collect();
        let bytes = safetensors_bytes(tensors, &metadata)
            .map_err(|e| Error::malformed(ErrorKind::Model, "LoRA file", path, e))?;
        write_synced(path, &bytes)
    }

    fn kohya_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, factor) in &self.factors {
            let (component, weight) = self.split(name)?;
            let known = FACTORS.iter().find_map(|(peft, kohya)| Some((weight.strip_suffix(peft)?, kohya)));
            let (weight, ending) = known.ok_or_else(|| strange(name))?;
            let weight = weight.replace('.', "_");
            let stem = format!("{}{weight}", self.kohya_prefix(component).ok_or_else(|| strange(name))?);
            tensors.insert(format!("{stem}{ending}"), factor.clone());
            let alpha = Tensor::new(self.alpha as f32, &Device::Cpu)?.to_dtype(factor.dtype())?;
            tensors.insert(format!("{stem}.alpha"), alpha);
        }
        Ok(tensors)
    }

    /// The folder of a factor's component, and the rest of its name.
    fn split<'a>(&self, name: &'a str) -> Result<(&'a str, &'a str)> {
        name.split_once('.').ok_or_else(|| strange(name))
    }

    /// What the names of a component begin with. Text encoders are numbered where there are several.
    fn kohya_prefix(&self, folder: &str) -> Option<&'static str> {
        let component = self.target.components.iter().find(|component| component.folder == folder)?;
        let texts = self.target.components.iter().filter(|component| !component.is_network).count();
        let mut prefixes = component.prefixes.iter().filter(|prefix| prefix.starts_with("lora_"));
        if texts > 1 { prefixes.next_back().copied() } else { prefixes.next().copied() }
    }

    /// What diffusers says of each component's adapter: the fields of PEFT's `LoraConfig` under the component's name.
    fn peft_metadata(&self) -> Result<BTreeMap<String, String>> {
        let mut modules: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in self.factors.keys() {
            let (component, weight) = self.split(name)?;
            if let Some(module) = weight.strip_suffix(FACTORS[0].0) {
                modules.entry(component).or_default().push(module);
            }
        }
        let mut settings = Map::new();
        for (component, modules) in modules {
            let fields = json!({
                "r": self.rank,
                "lora_alpha": self.alpha,
                "target_modules": modules,
                "lora_dropout": 0.0,
                "bias": "none",
                "use_rslora": false,
                "use_dora": false,
            });
            for (name, value) in fields.as_object().into_iter().flatten() {
                settings.insert(format!("{component}.{name}"), value.clone());
            }
        }
        Ok([("lora_adapter_metadata".to_owned(), Value::Object(settings).to_string())].into())
    }
}

fn strange(name: &str) -> Error {
    Error::invalid(
        "the name of a factor",
        name,
        "it is COMPONENT.WEIGHT.lora_A.weight or COMPONENT.WEIGHT.lora_B.weight",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::lora_names::{Module, Role, parse};
    use crate::families::{Family, SD1, SDXL};
    use candle_core::DType;

    const WEIGHTS: [&str; 3] = [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    ];

    /// Whoever reads a name finds the weight again, in both forms.
    #[test]
    fn names_lead_back_to_their_weights() -> Result<()> {
        let target = SDXL.lora_target(2);
        let factor =
            |weight: &str| (format!("{weight}.lora_A.weight"), Tensor::zeros((4, 8), DType::F32, &Device::Cpu));
        let factors = WEIGHTS.map(factor).into_iter().map(|(name, tensor)| Ok((name, tensor?)));
        let factors: BTreeMap<_, _> = factors.collect::<Result<_>>()?;
        let lora = WrittenLora { target: &target, factors, rank: 4, alpha: 2.0, metadata: BTreeMap::new() };
        let kohya = lora.kohya_tensors()?;
        assert!(kohya.contains_key("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"));
        for names in [lora.factors.keys().collect::<Vec<_>>(), kohya.keys().collect()] {
            let found = names.into_iter().filter_map(|name| parse(name, &target));
            let mut found: Vec<_> = found.filter(|(_, role)| *role == Role::Down).map(|(module, _)| module).collect();
            let wanted = WEIGHTS.iter().filter_map(|weight| {
                let (component, name) = weight.split_once('.')?;
                Module::of_tensor(component, &format!("{name}.weight"))
            });
            let mut wanted: Vec<_> = wanted.collect();
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted);
        }
        let alpha = &kohya["lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha"];
        assert_eq!(alpha.to_scalar::<f32>()?, 2.0);
        let one = SD1.lora_target(2);
        assert_eq!(WrittenLora { target: &one, ..lora }.kohya_prefix("text_encoder"), Some("lora_te_"));
        Ok(())
    }

    #[test]
    fn a_name_of_no_component_is_an_error() -> Result<()> {
        let target = SD1.lora_target(2);
        let factors = [("vae.conv.lora_A.weight".to_owned(), Tensor::zeros((4, 8), DType::F32, &Device::Cpu)?)].into();
        let lora = WrittenLora { target: &target, factors, rank: 4, alpha: 4.0, metadata: BTreeMap::new() };
        assert!(lora.kohya_tensors().is_err());
        Ok(())
    }
}
