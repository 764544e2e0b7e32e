//! Configurations that follow from the tensors of a file, of models that come as one file without any.

use crate::checkpoints::{SingleFile, StoredTensor, TensorNames};
use crate::config::MOST_RESOLUTIONS;
use crate::models::{AutoencoderConfig, AutoencoderTinyConfig};
use crate::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

impl SingleFile {
    /// The configuration of the tiny autoencoder (TAESD) that the file holds alone, if it does: its tensors tell it.
    ///
    /// # Errors
    /// If their shapes are those of no network.
    pub fn tiny_autoencoder(&self) -> Result<Option<AutoencoderTinyConfig>> {
        let Some(layers) = TinyLayers::of(&self.file().tensors()) else { return Ok(None) };
        let config = layers.config();
        config.check().map_err(|(field, expected)| {
            let what = format!("a tiny autoencoder whose {field} cannot be used ({expected})");
            Error::unusable(
                ErrorKind::Model,
                format!("the autoencoder {}", self.path().display()),
                what,
                "get the file again",
            )
        })?;
        Ok(Some(config))
    }
}

/// The shapes of a file's tensors by their names.
pub(super) type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

pub(super) fn shapes(tensors: &[StoredTensor]) -> Shapes<'_> {
    tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect()
}

/// What numbered layers of a tiny autoencoder's half are: convolutions, with so many blocks before each but the first.
#[derive(Debug, Default)]
struct Half {
    /// Channels that go in and come out.
    inputs: usize,
    outputs: usize,
    /// Channels in between.
    channels: usize,
    blocks: Vec<usize>,
}

impl Half {
    /// The layers under a prefix, which a number follows.
    fn of(shapes: &Shapes<'_>, prefix: &str) -> Option<Self> {
        let mut layers = BTreeMap::new();
        for (name, shape) in shapes {
            let Some((number, rest)) = name.strip_prefix(prefix).and_then(|name| name.split_once('.')) else {
                continue;
            };
            if let (Ok(number), true) = (number.parse::<u16>(), ["weight", "conv.0.weight"].contains(&rest)) {
                layers.insert(number, (rest == "weight", *shape));
            }
        }
        let mut convolutions = layers.values().filter(|(convolution, _)| *convolution).map(|(_, shape)| *shape);
        let (&[channels, inputs, 3, 3], &[outputs, ..]) = (convolutions.next()?, convolutions.next_back()?) else {
            return None;
        };
        let mut blocks = vec![0];
        for (convolution, _) in layers.values().skip(1) {
            match (convolution, blocks.last_mut()) {
                (false, Some(count)) => *count += 1,
                _ => blocks.push(0),
            }
        }
        // The last convolution starts no run.
        blocks.pop();
        if blocks.len() > MOST_RESOLUTIONS {
            return None;
        }
        Some(Self { inputs, outputs, channels, blocks })
    }
}

/// A tiny autoencoder (TAESD) in a file of its own, under the names of diffusers or those of its author, whose decoder
/// has one layer more, the first, without weights.
#[derive(Debug)]
pub(super) struct TinyLayers {
    /// Each half after what the numbers of its layers follow in the file.
    encoder: Option<(&'static str, Half)>,
    decoder: (&'static str, Half),
    /// What is added to the numbers of the decoder's.
    shift: usize,
}

impl TinyLayers {
    /// `None` if the file holds no decoder of this kind.
    pub fn of(tensors: &[StoredTensor]) -> Option<Self> {
        let shapes = shapes(tensors);
        let forms = [
            ("decoder.layers.0.weight", Some("encoder.layers."), "decoder.layers.", 0),
            ("decoder.1.weight", Some("encoder."), "decoder.", 1),
            ("taesd_decoder.1.weight", Some("taesd_encoder."), "taesd_decoder.", 1),
            // The decoder alone.
            ("1.weight", None, "", 1),
        ];
        let (_, encoder, decoder, shift) = forms.into_iter().find(|(first, ..)| shapes.contains_key(first))?;
        let half = |prefix| Some((prefix, Half::of(&shapes, prefix)?));
        Some(Self { encoder: encoder.and_then(half), decoder: half(decoder)?, shift })
    }

    /// With diffusers' defaults for what shapes do not tell.
    pub fn config(&self) -> AutoencoderTinyConfig {
        let (_, Half { inputs, outputs, channels, blocks }) = &self.decoder;
        let resolutions = blocks.len();
        let encoder = self.encoder.as_ref().map(|(_, half)| half);
        AutoencoderTinyConfig {
            decoder_channels: vec![*channels; resolutions],
            encoder_blocks: encoder.map_or_else(|| vec![1; resolutions], |encoder| encoder.blocks.clone()),
            decoder_blocks: blocks.clone(),
            common: AutoencoderConfig {
                in_channels: encoder.map_or(*outputs, |encoder| encoder.inputs),
                out_channels: *outputs,
                latent_channels: *inputs,
                block_out_channels: vec![encoder.map_or(*channels, |encoder| encoder.channels); resolutions],
                ..AutoencoderTinyConfig::default().common
            },
        }
    }

    pub fn names(&self) -> TensorNames {
        let mut names = TensorNames::plain("");
        // More layers than convolutions and blocks: the numbers count activations and upsampling too.
        let layers = |half: &Half| 3 * half.blocks.len() + half.blocks.iter().sum::<usize>() + 2;
        if let Some((prefix, half)) = &self.encoder {
            for i in 0..layers(half) {
                names.pair(format!("encoder.layers.{i}."), format!("{prefix}{i}."));
            }
        }
        let (prefix, half) = &self.decoder;
        for i in 0..layers(half) {
            names.pair(format!("decoder.layers.{i}."), format!("{prefix}{}.", i + self.shift));
        }
        names
    }
}
