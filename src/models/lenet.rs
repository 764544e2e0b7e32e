//! LeNet: a small classifier of small pictures, clean or with noise on them.
//!
//! LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", figure 2, as
//! it is made today: rectified linear units, maxima in place of averages, a linear output. A classifier of noisy
//! pictures is told the timestep, whose embedding is added to every channel of both convolutions (Dhariwal and
//! Nichol 2021, section 4, have a classifier of `x_t` and `t`).

use crate::config::ConfigFields;
use crate::denoising::Classifier;
use crate::layers::{
    Activation, Backend, Conv2d, ConvGeometry, FeatureMap, Linear, Pooling, SinusoidalEmbedding, TimestepEmbedding,
    Weights, log_softmax,
};
use crate::{Error, ErrorKind, Result};
use candle_core::Tensor;
use serde_json::{Map, Value, json};

/// Side of the convolutions' kernels.
const KERNEL: usize = 5;
/// Pixels along a side of which a convolution and its pooling make one.
const POOL: usize = 2;
/// Width of the timestep's sines and cosines.
const SINUSOIDS: usize = 64;

/// `classifier/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct LeNetConfig {
    /// Channels of the pictures.
    pub in_channels: usize,
    /// Height and width of the pictures.
    pub sample_size: usize,
    /// Channels of the two convolutions.
    pub block_out_channels: [usize; 2],
    /// Width of the hidden layer.
    pub hidden_size: usize,
    /// The classes' names, in the order of the output.
    pub class_names: Vec<String>,
    /// Width of the timestep embedding, of a classifier of noisy pictures.
    pub time_embedding: Option<usize>,
}

impl LeNetConfig {
    /// The sizes that MNIST needs, for pictures of other sizes and classes too.
    pub fn new(in_channels: usize, sample_size: usize, class_names: Vec<String>, noisy: bool) -> Self {
        Self {
            in_channels,
            sample_size,
            block_out_channels: [16, 32],
            hidden_size: 128,
            class_names,
            time_embedding: noisy.then_some(128),
        }
    }

    /// From the fields of a `config.json`.
    ///
    /// # Errors
    /// If a field has an unusable value, or is not known.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        fields.only("_class_name", &[json!("LeNet")])?;
        fields.ignore(&["class_names"]);
        let channels = fields.usize_list("block_out_channels", &[16, 32])?;
        let block_out_channels =
            channels.try_into().map_err(|_| fields.wrong("block_out_channels", "there are two convolutions"))?;
        let names = fields.fields().get("class_names").and_then(Value::as_array);
        let names = names.and_then(|list| list.iter().map(|v| v.as_str().map(String::from)).collect());
        let config = Self {
            in_channels: fields.usize("in_channels", 1)?,
            sample_size: fields.usize("sample_size", 28)?,
            block_out_channels,
            hidden_size: fields.usize("hidden_size", 128)?,
            class_names: names.ok_or_else(|| fields.wrong("class_names", "it must be a list of names"))?,
            time_embedding: fields.optional_usize("time_embedding")?,
        };
        fields.reject_unread()?;
        config.check().map_err(|(field, expected)| fields.wrong(field, expected))?;
        Ok(config)
    }

    /// Which field cannot be used, and what it may be.
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let wide = |width: usize| (1..=4096).contains(&width);
        match () {
            () if !(1..=64).contains(&self.in_channels) => Err(("in_channels", "it must be from 1 to 64")),
            () if !(POOL * POOL..=256).contains(&self.sample_size) => Err(("sample_size", "it must be from 4 to 256")),
            () if !self.block_out_channels.iter().all(|&c| wide(c)) => {
                Err(("block_out_channels", "each must be from 1 to 4096"))
            }
            () if !wide(self.hidden_size) => Err(("hidden_size", "it must be from 1 to 4096")),
            () if !(2..=100_000).contains(&self.class_names.len()) => {
                Err(("class_names", "a classifier tells from 2 to 100000 classes apart"))
            }
            () if self.time_embedding.is_some_and(|width| !wide(width)) => {
                Err(("time_embedding", "it must be from 1 to 4096, or null"))
            }
            () => Ok(()),
        }
    }

    /// The fields of the `config.json`.
    pub fn fields(&self) -> Map<String, Value> {
        let pairs = [
            ("_class_name", json!("LeNet")),
            ("in_channels", json!(self.in_channels)),
            ("sample_size", json!(self.sample_size)),
            ("block_out_channels", json!(self.block_out_channels)),
            ("hidden_size", json!(self.hidden_size)),
            ("class_names", json!(self.class_names)),
            ("time_embedding", json!(self.time_embedding)),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The classifier.
#[derive(Debug)]
pub struct LeNet {
    config: LeNetConfig,
    convolutions: [Conv2d; 2],
    time: Option<Time>,
    hidden: Linear,
    output: Linear,
    backend: Backend,
}

/// The timestep's way into the network.
#[derive(Debug)]
struct Time {
    embedding: TimestepEmbedding,
    projections: [Linear; 2],
}

const SINUSOIDAL: SinusoidalEmbedding =
    SinusoidalEmbedding { width: SINUSOIDS, flip_sin_to_cos: true, freq_shift: 0.0 };

impl LeNet {
    /// From weights: `conv1`, `conv2`, `hidden`, `output`, and for noisy pictures `time_embedding`,
    /// `time_proj1`, `time_proj2`.
    ///
    /// # Errors
    /// If the configuration cannot be used, or the weights cannot be had.
    pub fn new(config: LeNetConfig, weights: &Weights<'_>) -> Result<Self> {
        config.check().map_err(|(field, fix)| {
            Error::unusable(
                ErrorKind::Model,
                format!("the classifier's {field}"),
                config.fields()[field].to_string(),
                fix,
            )
        })?;
        let [first, second] = config.block_out_channels;
        let conv = |name, inputs, outputs| Conv2d::new(&weights.at(name), inputs, outputs, KERNEL);
        let time = config.time_embedding.map(|width| {
            Ok::<_, Error>(Time {
                embedding: TimestepEmbedding::new(&weights.at("time_embedding"), SINUSOIDS, width)?,
                projections: [
                    Linear::new(&weights.at("time_proj1"), width, first)?,
                    Linear::new(&weights.at("time_proj2"), width, second)?,
                ],
            })
        });
        let side = config.sample_size / POOL / POOL;
        Ok(Self {
            convolutions: [conv("conv1", config.in_channels, first)?, conv("conv2", first, second)?],
            time: time.transpose()?,
            hidden: Linear::new(&weights.at("hidden"), second * side * side, config.hidden_size)?,
            output: Linear::new(&weights.at("output"), config.hidden_size, config.class_names.len())?,
            backend: weights.backend(),
            config,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &LeNetConfig {
        &self.config
    }

    /// Unnormalised logarithms of the classes' probabilities.
    ///
    /// # Shapes
    /// `x`: `[batch, in_channels, sample_size, sample_size]` in `[-1, 1]`, or `x_t` of such pictures; `timesteps`:
    /// `[batch]`, which a classifier of clean pictures does not look at. The result is `[batch, classes]`.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn forward(&self, x: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        self.classify(&self.features(x, timesteps)?)
    }

    /// The same from features of pictures, `[batch, hidden_size]`.
    ///
    /// # Errors
    /// If there are more or fewer features.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        self.output.forward(features)
    }

    /// What the last layer looks at: features of pictures by which they can be compared.
    ///
    /// # Shapes
    /// As [`Self::forward`]; the result is `[batch, hidden_size]`, at least 0.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn features(&self, x: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        let LeNetConfig { in_channels, sample_size, .. } = self.config;
        if (channels, height, width) != (in_channels, sample_size, sample_size) {
            let fix = format!("the classifier knows {in_channels}x{sample_size}x{sample_size}");
            return Err(Error::invalid("the pictures' size", format!("{channels}x{height}x{width}"), fix));
        }
        let embedding = self.time.as_ref().map(|time| {
            let embedding = time.embedding.forward(&SINUSOIDAL.forward(timesteps)?.to_dtype(x.dtype())?)?;
            Activation::Silu.forward(&embedding)
        });
        let embedding = embedding.transpose()?;
        let mut h = FeatureMap::from_nchw(x, self.backend)?;
        for (i, convolution) in self.convolutions.iter().enumerate() {
            h = convolution.forward(&h)?;
            if let (Some(time), Some(embedding)) = (&self.time, &embedding) {
                h = h.add_per_channel(&time.projections[i].forward(embedding)?)?;
            }
            // The maximum of rectified values is the rectified maximum, of a quarter as many.
            h = h.pool(Pooling::Max, ConvGeometry::square(POOL, POOL, 0))?.activate(Activation::Relu)?;
        }
        let hidden = self.hidden.forward(&h.to_nchw()?.flatten_from(1)?)?;
        Activation::Relu.forward(&hidden)
    }
}

impl Classifier for LeNet {
    fn classes(&self) -> usize {
        self.config.class_names.len()
    }

    fn log_probabilities(&self, x: &Tensor, timestep: f64) -> Result<Tensor> {
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        log_softmax(&self.forward(x, &timesteps)?)
    }
}
