//! A model that does not change while something beside its weights is trained: adapters, or embeddings of a new token.

use super::prompt_grid::{Painter, SamplePrompts};
use crate::adapters::{AdapterSource, LoraTarget};
use crate::checkpoints::{ComponentKind, Held, ModelFiles};
use crate::conditioning::Conditioning;
use crate::config::ConfigFields;
use crate::denoising::{Cache, Call};
use crate::families::{Architecture, DenoisingNetwork, Families, KeptWeights, Loader, XlFacts};
use crate::files::hexadecimal;
use crate::images::Picture;
use crate::kernels::MatmulPrecision;
use crate::layers::{Backend, Weights};
use crate::models::{Autoencoder, Halves};
use crate::text::{Prompt, TextEncoder};
use crate::training::data::LatentBatch;
use crate::training::{DenoisingLoss, Draws, NoisyBatch, Stream};
use crate::{DType, Device, Error, ErrorKind, Result, Tensor};
use sha2::{Digest, Sha256};

/// The score that a refiner is told of pictures that it should make.
const AESTHETIC_SCORE: f32 = 6.0;

/// How the weights of a [`FrozenModel`] are held, and computed with, on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldWeights {
    /// The element type of matrices.
    pub dtype: DType,
    /// In which form the others are held.
    pub held: Held,
    /// How products with them are taken.
    pub products: MatmulPrecision,
    /// With whose operations.
    pub backend: Backend,
}

impl Default for HeldWeights {
    fn default() -> Self {
        let (products, backend) = (MatmulPrecision::Full, Backend::Kernels);
        Self { dtype: DType::F32, held: Held::AsAsked, products, backend }
    }
}

/// A text-conditioned model, from whose weights networks with different adapters beside them are made: they share its memory.
#[derive(Debug)]
pub struct FrozenModel {
    files: ModelFiles,
    family: &'static str,
    name: String,
    network: &'static str,
    text_encoders: Vec<&'static str>,
    target: LoraTarget,
    architecture: Box<dyn Architecture>,
    held: HeldWeights,
    kept: KeptWeights,
    autoencoder: Box<dyn Autoencoder>,
    scheduler: ConfigFields,
    xl: Option<XlFacts>,
    fingerprint: String,
}

impl FrozenModel {
    /// Loads a model, on the CPU.
    ///
    /// # Errors
    /// If it cannot be loaded, or is none that a text and nothing else conditions.
    pub fn load(files: &ModelFiles, families: &Families, held: HeldWeights) -> Result<Self> {
        let detected = families.detect(files)?;
        let network = detected.component(ComponentKind::Network)?.folder;
        let architecture = detected.family.architecture(files)?;
        let facts = architecture.network_facts();
        let in_model = detected.component(ComponentKind::Autoencoder)?.folder;
        let autoencoder = architecture.autoencoder(files, in_model)?;
        let channels = autoencoder.latent_space().channels;
        if facts.in_channels != channels || facts.out_channels != channels || facts.takes_guidance {
            let fix = "LoRAs and embeddings are trained for networks that are told a picture's latents and a text; take a model \
                       that is neither for inpainting nor distilled to take the strength of guidance";
            return Err(Error::unusable(ErrorKind::Model, "the model", detected.name(), fix));
        }
        let kept = KeptWeights::default();
        let loader = loader(files, held);
        let (autoencoder, mut names) = autoencoder.load(&loader, in_model, Halves::Both)?;
        let loader = Loader { kept: Some(&kept), ..loader };
        let (text, text_names) = architecture.text_encoder(&loader)?;
        architecture.check_text(text.as_ref())?;
        let xl = architecture.xl(files, text.as_ref())?;
        let (_, network_names) = loader.load(network, &[], |weights| architecture.network(weights, DType::F32))?;
        names.extend(text_names.into_iter().chain(network_names));
        let components = detected.family.components().iter();
        let texts = components.filter(|component| component.kind == ComponentKind::TextEncoder);
        Ok(Self {
            text_encoders: texts.map(|component| component.folder).collect(),
            family: detected.family.id(),
            name: detected.name(),
            network,
            target: detected.family.lora_target(architecture.layers_per_block()),
            architecture,
            held,
            kept,
            autoencoder,
            scheduler: files.config("scheduler", "scheduler_config.json")?,
            xl,
            fingerprint: fingerprint(files, names)?,
            files: files.clone(),
        })
    }

    /// The short name of its family.
    pub fn family_id(&self) -> &'static str {
        self.family
    }

    /// What messages call its family.
    pub fn family(&self) -> &str {
        &self.name
    }

    /// What the names in LoRA files mean for it.
    pub fn lora_target(&self) -> &LoraTarget {
        &self.target
    }

    /// `scheduler_config.json`.
    pub fn scheduler(&self) -> &ConfigFields {
        &self.scheduler
    }

    /// The autoencoder.
    pub fn autoencoder(&self) -> &dyn Autoencoder {
        self.autoencoder.as_ref()
    }

    /// Height and width of the pictures that it was trained on.
    pub fn native_size(&self) -> (usize, usize) {
        let (height, width) = self.architecture.network_facts().sample_size;
        let factor = self.autoencoder.latent_space().factor;
        (height * factor, width * factor)
    }

    /// Whether it has several text encoders, or sees of one less than all of its layers: then some of their weights would have
    /// no gradient.
    pub fn sees_part_of_its_text_encoders(&self) -> bool {
        self.xl.is_some()
    }

    /// The SHA-256 of its weights' files, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The folder of the denoising network.
    pub(super) fn network_folder(&self) -> &'static str {
        self.network
    }

    /// The folders of the text encoder's networks.
    pub(super) fn text_encoder_folders(&self) -> &[&'static str] {
        &self.text_encoders
    }

    /// The denoising network with adapters beside its weights.
    pub(super) fn network(&self, adapters: Option<&dyn AdapterSource>) -> Result<Box<dyn DenoisingNetwork>> {
        let loader = Loader { kept: Some(&self.kept), adapters, ..loader(&self.files, self.held) };
        let build = |weights: &Weights<'_>| self.architecture.network(weights, DType::F32);
        Ok(loader.load(self.network, &[], build)?.0)
    }

    /// The text encoder, however many networks that are, with adapters beside its weights.
    pub(super) fn text_encoder(&self, adapters: Option<&dyn AdapterSource>) -> Result<Box<dyn TextEncoder>> {
        let loader = Loader { kept: Some(&self.kept), adapters, ..loader(&self.files, self.held) };
        Ok(self.architecture.text_encoder(&loader)?.0)
    }

    /// The conditioning of each text, one row; whatever finds no room in it is named in a warning.
    pub(super) fn encode<T: AsRef<str>>(
        &self,
        encoder: &dyn TextEncoder,
        texts: &[T],
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Conditioning>> {
        let one = |text: &T| {
            let prompt = Prompt { texts: [text.as_ref(); 2], what: "caption", clip_skip: 0 };
            // One at a time: what is asked for together has one shape.
            Ok(encoder.encode(&[prompt], false, warnings)?.swap_remove(0))
        };
        texts.iter().map(one).collect()
    }

    /// What stands for no text, made of the conditioning of an empty one: zeros where the model was trained so.
    pub(super) fn without_text(&self, empty: &Conditioning) -> Result<Conditioning> {
        match self.xl {
            Some(XlFacts { zeros_for_no_prompt: true, .. }) => empty.without_text(),
            _ => Ok(empty.clone()),
        }
    }

    /// A loss of a batch whose pictures the network is told of by `conditioning`, a row for each.
    pub(super) fn loss(
        &self,
        network: &dyn DenoisingNetwork,
        loss: &mut DenoisingLoss,
        conditioning: Conditioning,
        batch: &LatentBatch,
        draws: Draws,
    ) -> Result<Tensor> {
        let latents = batch.draw(&mut draws.generator(Stream::Latents))?;
        let factor = self.autoencoder.latent_space().factor;
        let (_, _, height, width) = latents.dims4()?;
        let conditioning = self.sized(conditioning, (height * factor, width * factor))?;
        let cache = Cache::default();
        let predict =
            |noisy: &NoisyBatch| network.forward(&Call::of_rows(&noisy.x_t, &noisy.levels, &conditioning, &cache));
        loss.mean(&latents, draws, predict)
    }

    /// What a network of this model draws of sample prompts, whose conditioning are `prompts`; `none` stands for no text.
    pub(super) fn grid(
        &self,
        network: &dyn DenoisingNetwork,
        samples: &SamplePrompts,
        prompts: &[Conditioning],
        none: &Conditioning,
        size: (usize, usize),
    ) -> Result<Picture> {
        let positive = self.sized(Conditioning::cat(&prompts.iter().collect::<Vec<_>>())?, size)?;
        let negative = self.sized(none.clone(), size)?;
        let painter = Painter { network, autoencoder: self.autoencoder(), scheduler: self.scheduler.fields() };
        painter.grid(samples, &positive, &negative, size)
    }

    /// The same conditioning, told the size of its pictures where the model is told one: as if they had it from the beginning, and
    /// nothing had been cut off.
    fn sized(&self, conditioning: Conditioning, (height, width): (usize, usize)) -> Result<Conditioning> {
        let (Some(xl), Some(text)) = (self.xl, &conditioning.text) else { return Ok(conditioning) };
        let size = [height as f32, width as f32];
        let last: &[f32] = if xl.scored { &[AESTHETIC_SCORE] } else { &size };
        let numbers = [&size[..], &[0.0, 0.0], last].concat();
        let row = Tensor::from_slice(&numbers, (1, numbers.len()), &Device::Cpu)?;
        let time_ids = row.broadcast_as((text.dim(0)?, numbers.len()))?.contiguous()?;
        Ok(Conditioning { time_ids: Some(time_ids), ..conditioning })
    }
}

fn loader(files: &ModelFiles, held: HeldWeights) -> Loader<'_> {
    Loader {
        weights: held.dtype,
        held: held.held,
        backend: Some(held.backend),
        products: Some(held.products),
        ..Loader::new(files, &Device::Cpu)
    }
}

/// The SHA-256 of the hashes of files, each of which counts once.
fn fingerprint(files: &ModelFiles, mut names: Vec<String>) -> Result<String> {
    names.sort();
    names.dedup();
    let mut hasher = Sha256::new();
    for name in names {
        hasher.update(files.sha256(&name)?);
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// The error of a batch that names a caption which is not there.
pub(super) fn no_such_caption(captions: usize) -> Error {
    Error::invalid(
        "the number of a caption in a batch",
        "too large",
        format!("the task has {captions}, counted from 0"),
    )
}
