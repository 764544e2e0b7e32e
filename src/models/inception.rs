//! Inception-v3, whose features pictures are compared by.
//!
//! Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", section 6, with torchvision's names and in its
//! order of branches. The network that FID is defined by (Heusel et al. 2017) is TensorFlow's of 2015-12-05, as pytorch-fid has it: it
//! pools otherwise, and knows 1008 classes.

use crate::layers::{Activation, Backend, Conv2d, ConvGeometry, FeatureMap, Linear, Pooling, Weights};
use crate::{Error, Result};
use candle_core::Tensor;

/// Height and width of the pictures.
const SIDE: usize = 299;
/// How many features a picture has.
const WIDTH: usize = 2048;
/// What batch normalization adds to variances.
const EPSILON: f64 = 1e-3;

/// Kernels and windows of one pixel, of three by three that keep the size, and of three by three that halve it.
const POINT: ConvGeometry = ConvGeometry::same([1, 1]);
const KEEPING: ConvGeometry = ConvGeometry::same([3, 3]);
const HALVING: ConvGeometry = ConvGeometry::square(3, 2, 0);

/// Whose Inception-v3 it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InceptionForm {
    /// pytorch-fid's: means leave the padding out, and the last block pools maxima.
    Fid,
    /// torchvision's: means count the padding as zeros.
    Torchvision,
}

impl InceptionForm {
    /// Classes of the form that FID is defined by.
    const FID_CLASSES: usize = 1008;

    /// By the number of classes, which no other one than FID's has.
    pub fn of_classes(classes: usize) -> Self {
        if classes == Self::FID_CLASSES { Self::Fid } else { Self::Torchvision }
    }

    fn mean(self) -> Pooling {
        match self {
            Self::Fid => Pooling::Mean,
            Self::Torchvision => Pooling::PaddedMean,
        }
    }

    fn last(self) -> Pooling {
        match self {
            Self::Fid => Pooling::Max,
            Self::Torchvision => Pooling::PaddedMean,
        }
    }
}

/// The network, without the auxiliary classifier of training.
#[derive(Debug)]
pub struct Inception {
    blocks: Vec<(&'static str, Block)>,
    output: Linear,
    classes: usize,
    backend: Backend,
}

/// Branches side by side, whose channels follow one another.
#[derive(Debug)]
struct Block(Vec<Vec<Step>>);

/// A step of a branch.
#[derive(Debug)]
enum Step {
    /// Convolution, batch normalization and rectification.
    Conv(Conv2d),
    /// Two of these side by side.
    Fork([Conv2d; 2]),
    Pool(Pooling, ConvGeometry),
}

impl Step {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let rectified = |conv: &Conv2d| conv.forward(x)?.activate(Activation::Relu);
        match self {
            Self::Conv(conv) => rectified(conv),
            Self::Fork([left, right]) => rectified(left)?.concat(&rectified(right)?),
            Self::Pool(pooling, window) => x.pool(*pooling, *window),
        }
    }
}

impl Block {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let branch = |steps: &Vec<Step>| steps.iter().try_fold(x.clone(), |x, step| step.forward(&x));
        let mut branches = self.0.iter().map(branch);
        let first = branches.next().unwrap_or_else(|| Ok(x.clone()))?;
        branches.try_fold(first, |joined, branch| joined.concat(&branch?))
    }
}

/// Builds the branches of a block at a place of the weights.
struct Builder<'a> {
    weights: Weights<'a>,
    inputs: usize,
}

impl Builder<'_> {
    fn conv(&self, name: &str, inputs: usize, outputs: usize, geometry: ConvGeometry) -> Result<Conv2d> {
        Conv2d::with_batch_norm(&self.weights.at(name), inputs, outputs, geometry, EPSILON)
    }

    /// A branch of convolutions: the name, outputs and geometry of each.
    fn branch(&self, convolutions: &[(&str, usize, ConvGeometry)]) -> Result<Vec<Step>> {
        let mut inputs = self.inputs;
        let step = |&(name, outputs, geometry): &(&str, usize, ConvGeometry)| {
            let conv = self.conv(name, inputs, outputs, geometry)?;
            inputs = outputs;
            Ok(Step::Conv(conv))
        };
        convolutions.iter().map(step).collect()
    }

    /// The branch that pools first.
    fn pooled(&self, pooling: Pooling, outputs: usize) -> Result<Vec<Step>> {
        let mut steps = vec![Step::Pool(pooling, KEEPING)];
        steps.extend(self.branch(&[("branch_pool", outputs, POINT)])?);
        Ok(steps)
    }

    /// Figure 5 of the paper.
    fn a(&self, pooling: Pooling, pooled: usize) -> Result<Block> {
        Ok(Block(vec![
            self.branch(&[("branch1x1", 64, POINT)])?,
            self.branch(&[("branch5x5_1", 48, POINT), ("branch5x5_2", 64, ConvGeometry::same([5, 5]))])?,
            self.branch(&[
                ("branch3x3dbl_1", 64, POINT),
                ("branch3x3dbl_2", 96, KEEPING),
                ("branch3x3dbl_3", 96, KEEPING),
            ])?,
            self.pooled(pooling, pooled)?,
        ]))
    }

    /// Figure 10, from 35x35 to 17x17.
    fn b(&self) -> Result<Block> {
        Ok(Block(vec![
            self.branch(&[("branch3x3", 384, HALVING)])?,
            self.branch(&[
                ("branch3x3dbl_1", 64, POINT),
                ("branch3x3dbl_2", 96, KEEPING),
                ("branch3x3dbl_3", 96, HALVING),
            ])?,
            vec![Step::Pool(Pooling::Max, HALVING)],
        ]))
    }

    /// Figure 6, with n = 7.
    fn c(&self, pooling: Pooling, channels: usize) -> Result<Block> {
        Ok(Block(vec![
            self.branch(&[("branch1x1", 192, POINT)])?,
            self.branch(&[
                ("branch7x7_1", channels, POINT),
                ("branch7x7_2", channels, ConvGeometry::same([1, 7])),
                ("branch7x7_3", 192, ConvGeometry::same([7, 1])),
            ])?,
            self.branch(&[
                ("branch7x7dbl_1", channels, POINT),
                ("branch7x7dbl_2", channels, ConvGeometry::same([7, 1])),
                ("branch7x7dbl_3", channels, ConvGeometry::same([1, 7])),
                ("branch7x7dbl_4", channels, ConvGeometry::same([7, 1])),
                ("branch7x7dbl_5", 192, ConvGeometry::same([1, 7])),
            ])?,
            self.pooled(pooling, 192)?,
        ]))
    }

    /// From 17x17 to 8x8.
    fn d(&self) -> Result<Block> {
        Ok(Block(vec![
            self.branch(&[("branch3x3_1", 192, POINT), ("branch3x3_2", 320, HALVING)])?,
            self.branch(&[
                ("branch7x7x3_1", 192, POINT),
                ("branch7x7x3_2", 192, ConvGeometry::same([1, 7])),
                ("branch7x7x3_3", 192, ConvGeometry::same([7, 1])),
                ("branch7x7x3_4", 192, HALVING),
            ])?,
            vec![Step::Pool(Pooling::Max, HALVING)],
        ]))
    }

    /// Figure 7.
    fn e(&self, pooling: Pooling) -> Result<Block> {
        let forked = |mut steps: Vec<Step>, [left, right]: [&str; 2]| {
            let fork = |name, kernel| self.conv(name, 384, 384, ConvGeometry::same(kernel));
            steps.push(Step::Fork([fork(left, [1, 3])?, fork(right, [3, 1])?]));
            Ok::<_, Error>(steps)
        };
        Ok(Block(vec![
            self.branch(&[("branch1x1", 320, POINT)])?,
            forked(self.branch(&[("branch3x3_1", 384, POINT)])?, ["branch3x3_2a", "branch3x3_2b"])?,
            forked(
                self.branch(&[("branch3x3dbl_1", 448, POINT), ("branch3x3dbl_2", 384, KEEPING)])?,
                ["branch3x3dbl_3a", "branch3x3dbl_3b"],
            )?,
            self.pooled(pooling, 192)?,
        ]))
    }
}

impl Inception {
    /// Height and width of the pictures that it takes.
    pub const SIDE: usize = SIDE;
    /// How many features a picture has.
    pub const WIDTH: usize = WIDTH;

    /// From weights under torchvision's names, for so many classes.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, form: InceptionForm, classes: usize) -> Result<Self> {
        let at = |name: &str, inputs| Builder { weights: weights.at(name), inputs };
        let whole = Builder { weights: weights.clone(), inputs: 3 };
        let stem = |name, inputs, outputs, geometry| {
            Ok::<_, Error>((name, Block(vec![vec![Step::Conv(whole.conv(name, inputs, outputs, geometry)?)]])))
        };
        let halved = || Block(vec![vec![Step::Pool(Pooling::Max, HALVING)]]);
        let (mean, last) = (form.mean(), form.last());
        let blocks = vec![
            stem("Conv2d_1a_3x3", 3, 32, HALVING)?,
            stem("Conv2d_2a_3x3", 32, 32, ConvGeometry::square(3, 1, 0))?,
            stem("Conv2d_2b_3x3", 32, 64, KEEPING)?,
            ("maxpool1", halved()),
            stem("Conv2d_3b_1x1", 64, 80, POINT)?,
            stem("Conv2d_4a_3x3", 80, 192, ConvGeometry::square(3, 1, 0))?,
            ("maxpool2", halved()),
            ("Mixed_5b", at("Mixed_5b", 192).a(mean, 32)?),
            ("Mixed_5c", at("Mixed_5c", 256).a(mean, 64)?),
            ("Mixed_5d", at("Mixed_5d", 288).a(mean, 64)?),
            ("Mixed_6a", at("Mixed_6a", 288).b()?),
            ("Mixed_6b", at("Mixed_6b", 768).c(mean, 128)?),
            ("Mixed_6c", at("Mixed_6c", 768).c(mean, 160)?),
            ("Mixed_6d", at("Mixed_6d", 768).c(mean, 160)?),
            ("Mixed_6e", at("Mixed_6e", 768).c(mean, 192)?),
            ("Mixed_7a", at("Mixed_7a", 768).d()?),
            ("Mixed_7b", at("Mixed_7b", 1280).e(mean)?),
            ("Mixed_7c", at("Mixed_7c", WIDTH).e(last)?),
        ];
        let output = Linear::with_bias(&weights.at("fc"), WIDTH, classes, form == InceptionForm::Torchvision)?;
        Ok(Self { blocks, output, classes, backend: weights.backend() })
    }

    /// How many classes it tells apart.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// What the last layer looks at, the mean of `Mixed_7c`: features of pictures by which they can be compared.
    ///
    /// # Shapes
    /// `pictures`: `[batch, 3, 299, 299]` in `[-1, 1]`; the result is `[batch, 2048]`, at least 0.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn features(&self, pictures: &Tensor) -> Result<Tensor> {
        self.features_told(pictures, &mut |_, _| Ok(()))
    }

    /// The same; `tell` is told what comes out of each block, `[batch, channels, height, width]`, and its name in torchvision.
    ///
    /// # Errors
    /// As [`Self::features`], or whatever `tell` reports.
    pub fn features_told(
        &self,
        pictures: &Tensor,
        tell: &mut dyn FnMut(&str, &FeatureMap) -> Result<()>,
    ) -> Result<Tensor> {
        let (_, channels, height, width) = pictures.dims4()?;
        if (channels, height, width) != (3, SIDE, SIDE) {
            let size = format!("{channels}x{height}x{width}");
            return Err(Error::invalid("the pictures' size", size, format!("Inception-v3 knows 3x{SIDE}x{SIDE}")));
        }
        let mut x = FeatureMap::from_nchw(pictures, self.backend)?;
        for (name, block) in &self.blocks {
            x = block.forward(&x)?;
            tell(name, &x)?;
        }
        x.mean()
    }

    /// Unnormalised logarithms of the classes' probabilities. FID's network has them without the bias: those that the inception
    /// score is defined by (Salimans et al. 2016, in their code).
    ///
    /// # Shapes
    /// `features`: `[batch, 2048]`; the result is `[batch, classes]`.
    ///
    /// # Errors
    /// If there are more or fewer features.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        self.output.forward(features)
    }
}
