//! Text-conditioned latent diffusion: the building blocks.
//!
//! A prompt becomes [`conditioning`], noise becomes latents, a network and a solver move the latents to where
//! the data is, and an autoencoder makes pixels of them. The one equation behind all of it is Tweedie's
//! formula for a state `x_t = alpha_t x_0 + sigma_t epsilon`,
//!
//! ```text
//! E[x_0 | x_t] = (x_t + sigma_t^2 grad log p(x_t)) / alpha_t,
//! ```
//!
//! which every network here estimates, as the clean sample, as the noise `epsilon`, or as
//! `v = alpha_t epsilon - sigma_t x_0` ([`denoising`]).
//!
//! | module | holds |
//! |---|---|
//! | [`noise`] | seeded normal noise, the numbers of PyTorch's CPU generator |
//! | [`schedulers`] | the forward process, the choice of timesteps, the solvers, the sampling loop |
//! | [`score_based`] | the SDE and ODE of continuous time, Langevin dynamics, likelihoods |
//! | [`denoising`] | one call of a network, what it predicts, guidance |
//! | [`conditioning`] | what the network is conditioned on |
//! | [`text`] | tokenizer, weights in prompts, what a text encoder is |
//! | [`models`] | CLIP text encoder, UNets, autoencoders, control models, networks that judge pictures |
//! | [`layers`] | what models are made of |
//! | [`kernels`] | how layers are computed on the CPU |
//! | [`checkpoints`] | where weights come from |
//! | [`families`] | what kinds of models there are, how each is recognised and built |
//! | [`adapters`] | LoRA, merged into a model's weights or beside them; textual inversion |
//! | [`training`] | data sets, objectives, AdamW, moving averages, runs that survive being killed |
//! | [`metrics`] | how good samples are: FID, KID, inception score, precision and recall |
//! | [`images`] | pictures and the settings stored in them |
//! | [`config`] | configuration files |
//! | [`files`] | files that are there whole or not at all, and a guard around what reads those of others |
//!
//! The order in which these run for a request is the crate `tweedie-pipelines`.
//!
//! # What holds throughout
//!
//! - A run changes nothing in a model: what it keeps from step to step is in its [`denoising::Cache`] and its solver, and
//!   ends with it. So threads share a model, and a seed gives one picture at any batch size.
//! - A model is a function of its configurations and weights alone. Layers hold a [`layers::Weight`] and never ask in what
//!   form it is.
//! - Networks are told all in a [`denoising::Call`]: the levels of the rows, which branch of guidance each is, where in the
//!   run they are.
//! - Schedules are `f64`; randomness is drawn on the host, a stream for each image.
//!
//! # Where to add what
//!
//! | to add | write | and name it in |
//! |---|---|---|
//! | a solver | a [`schedulers::Solver`], which a request's run takes as it is | [`schedulers::SCHEDULERS`], to choose it by name |
//! | a family of models | a [`families::Family`] | [`families::FAMILIES`], or the builder's own list |
//! | a form of weights | a [`layers::WeightForm`] and a [`layers::WeightSource`] that gives it | nowhere |
//! | something to train | a [`training::TrainingTask`] | nowhere |

pub mod adapters;
pub mod checkpoints;
pub mod conditioning;
pub mod config;
pub mod denoising;
mod error;
pub mod families;
pub mod files;
pub mod images;
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod models;
pub mod noise;
mod noise_level;
pub mod schedulers;
pub mod score_based;
pub mod text;
pub mod training;

pub use candle_core::{DType, Device, Tensor};
pub use error::{Error, ErrorKind, Result, with_options};
pub use noise_level::NoiseLevel;
