//! How good samples are: by the features that a network sees in them, and by the likelihood that a model gives to pictures.
//!
//! | figure | says | function |
//! |---|---|---|
//! | FID | how far the distribution of features is from the reference's | [`FrechetReference`], [`frechet_distance`] |
//! | FID-infinity | the same of infinitely many samples | [`FrechetReference::infinity`] |
//! | KID | the same without an assumption of normality, and without bias | [`kernel_distance`] |
//! | inception score | how sure a classifier is of samples, and how many classes they have | [`inception_score`] |
//! | precision, density | how much of the samples is like the reference | [`manifold_figures`] |
//! | recall, coverage | how much of the reference is reached | [`manifold_figures`] |
//! | CLIP score | how well pictures show what texts say | [`clip_score`], of a [`ClipModel`] |
//! | variational bound | how many bits a model needs for pictures | [`LikelihoodBound`] |
//!
//! A [`FeatureNetwork`], such as [`InceptionFeatures`], makes features of pictures, through an [`Extraction`]. [`Features`] `[pictures, width]`, are f32; what is computed of them is f64. Means and covariances, [`Moments`],
//! take any number of pictures in bounded memory, and of the features themselves a [`FeatureSample`] keeps as many as there is room
//! for. A [`Bootstrap`] gives each figure its interval.

mod bootstrap;
mod clip_score;
mod extraction;
mod feature_network;
mod features;
mod frechet_distance;
mod inception_features;
mod inception_score;
mod kernel_distance;
mod likelihood;
mod manifolds;
mod moments;
mod picture_folder;
mod statistics_file;

pub use bootstrap::{Bootstrap, Figure, Interval};
pub use clip_score::{ClipModel, TextDirections, clip_score, clip_scores};
pub use extraction::{Extraction, Kept, PictureSet};
pub use feature_network::{FeatureNetwork, PictureFeatures};
pub use features::{FeatureSample, Features};
pub use frechet_distance::{FrechetDistance, FrechetReference, frechet_distance};
pub use inception_features::{InceptionFeatures, InceptionResizing};
pub use inception_score::{InceptionScore, inception_score};
pub use kernel_distance::{KernelDistance, KernelDistanceOptions, kernel_distance};
pub use likelihood::{BoundTerms, LikelihoodBound, MeanOfPictures};
pub use manifolds::{ManifoldFigures, NEAREST, manifold_figures};
pub use moments::{FeatureStatistics, Moments, feature_statistics};
pub use picture_folder::features_of_folder;
