//! The list of families, and the one way to find a model's.

use super::{Component, Family, FilePrediction, PIXEL, SD1, SD2, SDXL, SDXL_REFINER, Variant, original_file};
use crate::checkpoints::{ComponentKind, FileLayout, ModelFiles, TensorFile};
use crate::{Error, ErrorKind, Result};

/// The families of this crate, in the order in which they are asked.
pub const FAMILIES: [&dyn Family; 5] = [&SD1, &SD2, &SDXL, &SDXL_REFINER, &PIXEL];

/// The families that a program knows.
#[derive(Debug, Clone)]
pub struct Families(Vec<&'static dyn Family>);

impl Default for Families {
    fn default() -> Self {
        Self::built_in()
    }
}

impl Families {
    /// Those of this crate.
    pub fn built_in() -> Self {
        Self(FAMILIES.to_vec())
    }

    /// These and another one, which is asked before them.
    #[must_use]
    pub fn with(mut self, family: &'static dyn Family) -> Self {
        self.0.insert(0, family);
        self
    }

    /// All of them, in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn Family> + '_ {
        self.0.iter().copied()
    }

    /// The folders with weights that models of any family have, each once, those of one kind together: what is looked for in
    /// a folder of which nothing is known yet.
    pub fn components(&self) -> Vec<Component> {
        let mut components: Vec<Component> = Vec::new();
        for component in self.iter().flat_map(Family::components) {
            if !components.iter().any(|known| known.folder == component.folder) {
                components.push(*component);
            }
        }
        let place = |kind| match kind {
            ComponentKind::TextEncoder => 0,
            ComponentKind::Network => 1,
            ComponentKind::Autoencoder => 2,
        };
        components.sort_by_key(|component| place(component.kind));
        components
    }

    /// The folders that no model is without that is `drawn` from a text, or else from noise alone.
    pub fn required(&self, drawn: Drawn) -> Vec<Component> {
        let of = |family: &&dyn Family| drawn == Drawn::of(*family);
        let families: Vec<_> = self.iter().filter(of).collect();
        let in_all = |component: &Component| {
            families.iter().all(|family| family.components().iter().any(|other| other.folder == component.folder))
        };
        self.components().into_iter().filter(in_all).collect()
    }

    /// The family of a model by its configurations.
    ///
    /// # Errors
    /// If it belongs to none; where a configuration is the reason, that says so.
    pub fn detect(&self, files: &ModelFiles) -> Result<Detected> {
        let mut failure = None;
        for family in self.iter() {
            match family.recognise(files) {
                Ok(Some(variant)) => return Ok(Detected { family, variant }),
                Ok(None) => {}
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        let names: Vec<_> = self.iter().map(Family::name).collect();
        Err(failure.unwrap_or_else(|| {
            let fix = format!("take a model of one of the families {}", names.join(", "));
            Error::unusable(ErrorKind::Model, "the model", files.path("").display(), fix)
        }))
    }

    /// The family of a file that holds a whole model, by its tensors.
    ///
    /// # Errors
    /// If the file holds something else; the message says what, where that is known.
    pub fn detect_file(&self, file: &TensorFile) -> Result<Detected> {
        for family in self.iter() {
            if let Some(variant) = family.recognise_file(file)? {
                return Ok(Detected { family, variant });
            }
        }
        Err(original_file::unrecognised(file))
    }

    /// Where a file with a whole model of these configurations has its components. A folder of which nothing else is known
    /// is taken for Stable Diffusion 1.x.
    pub fn file_layout(&self, configs: &ModelFiles) -> &'static dyn FileLayout {
        let detected = self.detect(configs).ok().and_then(|detected| detected.family.file_layout());
        detected.unwrap_or(&super::sd1::LAYOUT)
    }
}

/// What a family's models draw from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// A text.
    FromText,
    /// Noise alone, or a class.
    FromNoise,
}

impl Drawn {
    fn of(family: &dyn Family) -> Self {
        let reads = family.components().iter().any(|component| component.kind == ComponentKind::TextEncoder);
        if reads { Self::FromText } else { Self::FromNoise }
    }
}

/// A model's family, and what else is known of it.
#[derive(Debug, Clone)]
pub struct Detected {
    /// The family.
    pub family: &'static dyn Family,
    /// The rest.
    pub variant: Variant,
}

impl Detected {
    /// What messages call it.
    pub fn name(&self) -> String {
        let Variant { inpainting, prediction, description } = &self.variant;
        let family = description.as_deref().unwrap_or(self.family.name());
        let inpainting = if *inpainting { ", inpainting" } else { "" };
        let prediction = match prediction.kind {
            FilePrediction::Epsilon => "",
            FilePrediction::V => ", predicts v",
            FilePrediction::EdmV { .. } => ", predicts v as EDM does",
        };
        format!("{family}{inpainting}{prediction}")
    }

    /// The component of a kind of which its models have one.
    ///
    /// # Errors
    /// If they have none.
    pub fn component(&self, kind: ComponentKind) -> Result<&'static Component> {
        self.family.components().iter().find(|component| component.kind == kind).ok_or_else(|| {
            let fix = format!("models of the family {} make no pictures from texts", self.family.name());
            Error::unusable(ErrorKind::Model, "the model", format!("without a component of kind {kind:?}"), fix)
        })
    }

    /// The name of the configurations that go with it, if a program has them.
    pub fn built_in(&self) -> Option<&'static str> {
        self.family.built_in(&self.variant)
    }
}
