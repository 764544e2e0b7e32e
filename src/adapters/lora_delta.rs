//! The change of a weight that an adapter's factors make.
//!
//! All kinds are read as matrices `[outputs, inputs * kernel * kernel]`, which is how a linear layer and a convolution lie
//! in memory alike.

use super::lora_names::Role;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Why factors make no change of a weight.
#[derive(Debug)]
pub(super) enum Failure {
    /// A factor is missing or does not fit.
    Part(Role, String),
    /// The change follows from the whole weight, by this part.
    OnlyMerged(Role),
    /// An operation failed.
    Tensor(candle_core::Error),
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

/// Of a kernel in three factors, whose intermediate product grows with it.
const MOST_RANK: usize = 4096;

type Outcome<T> = Result<T, Failure>;

/// The tensors of one module of an adapter, in f32 on the CPU.
#[derive(Debug, Default)]
pub(super) struct Factors {
    pub tensors: BTreeMap<Role, Tensor>,
    /// The change is multiplied by `alpha / rank`; without it, by one.
    pub alpha: Option<f64>,
    /// Whether IA3 multiplies the columns of a weight, what goes in, instead of its rows, what comes out.
    pub on_input: bool,
    /// By the root of the rank instead (rsLoRA, Kalajdzievski 2023).
    pub by_root_of_rank: bool,
}

/// A change that does not depend on the weight, with alpha in it.
#[derive(Debug)]
pub(super) enum Change {
    /// `up @ down`: `[outputs, rank]` and `[rank, inputs * places]`.
    LowRank { down: Tensor, up: Tensor },
    /// Of the weight's shape.
    Full(Tensor),
}

/// The sizes of the weight that is changed.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    outputs: usize,
    inputs: usize,
    /// Places of the kernel.
    places: usize,
}

impl Sizes {
    fn of(shape: &[usize]) -> Self {
        Self { outputs: shape[0], inputs: shape[1], places: shape[2..].iter().product() }
    }
}

impl Factors {
    /// The change of a weight of `shape`, `[outputs, inputs]` or `[outputs, inputs, height, width]`. Of LoRA and LoCon it is of low
    /// rank; what else there is has no factors that one could multiply by one after the other.
    pub fn change(&self, shape: &[usize]) -> Outcome<Change> {
        let sizes = Sizes::of(shape);
        if let Some(&role) =
            [Role::Magnitude, Role::Scale, Role::Activation].iter().find(|role| self.tensors.contains_key(role))
        {
            return Err(Failure::OnlyMerged(role));
        }
        if !self.is_low_rank() {
            return Ok(Change::Full(self.matrix_of_change(sizes)?.reshape(shape)?));
        }
        let (down, rank) = if self.tensors.contains_key(&Role::Mid) {
            self.tucker(None, Role::Mid, Role::Down, sizes.inputs, sizes.places)?
        } else {
            let down = self.matrix(Role::Down, None, Some(sizes.inputs * sizes.places))?;
            let rank = down.dim(0)?;
            (down, rank)
        };
        if down.dim(0)? == 0 {
            return Err(Failure::Part(Role::Down, "has rank 0, which is no change".into()));
        }
        let up = self.matrix(Role::Up, Some(sizes.outputs), Some(down.dim(0)?))?;
        Ok(Change::LowRank { down, up: self.scaled(up, Some(rank))? })
    }

    fn is_low_rank(&self) -> bool {
        let of_others = |role: &Role| {
            !matches!(role, Role::Down | Role::Up | Role::Mid | Role::Alpha | Role::Magnitude | Role::Scale)
        };
        !self.tensors.keys().any(of_others)
    }

    /// `sum`, which is `base` with what was merged before, with `weight` times the change added; with DoRA, rescaled as
    /// brings `base` with this change to its lengths.
    ///
    /// # Shapes
    /// `base`, `sum`: `[outputs, inputs]`, `[outputs, inputs, height, width]` or, of a bias or a norm, `[outputs]`, of f32; the
    /// result is alike.
    pub fn merge(&self, sum: &Tensor, base: &Tensor, weight: f64) -> Outcome<Tensor> {
        let shape = base.dims();
        if shape.len() < 2 {
            return Ok((sum + (self.vector(Role::Difference, base.elem_count())?.reshape(shape)? * weight)?)?);
        }
        let sizes = Sizes::of(shape);
        let change = match self.tensors.contains_key(&Role::Activation) {
            true => self.of_activation(base, sizes)?,
            false => self.matrix_of_change(sizes)?.reshape(shape)?,
        };
        let change = (change * weight)?;
        let sum = (sum + &change)?;
        match self.lengths(sizes)? {
            Some(lengths) => rescaled(&sum, &(base + change)?, &lengths, sizes),
            None => Ok(sum),
        }
    }

    /// `[outputs, inputs * places]`, with alpha in it.
    fn matrix_of_change(&self, sizes: Sizes) -> Outcome<Tensor> {
        let has = |role: Role| self.tensors.contains_key(&role);
        if has(Role::Difference) {
            return self.matrix(Role::Difference, Some(sizes.outputs), Some(sizes.inputs * sizes.places));
        }
        if has(Role::HadamardLeft1) || has(Role::HadamardRight1) {
            return self.hadamard(sizes);
        }
        if [Role::Kronecker1, Role::KroneckerLeft1, Role::Kronecker2, Role::KroneckerLeft2].into_iter().any(has) {
            return self.kronecker(sizes);
        }
        let (change, rank) = if has(Role::Mid) {
            let up = self.matrix(Role::Up, Some(sizes.outputs), None)?;
            self.tucker(Some(&up), Role::Mid, Role::Down, sizes.inputs, sizes.places)?
        } else {
            self.product(Role::Up, Role::Down, sizes.outputs, Some(sizes.inputs * sizes.places))?
        };
        self.scaled(change, Some(rank))
    }

    /// LoHa (Hyeon-Woo et al. 2022): the elementwise product of two low-rank matrices.
    fn hadamard(&self, sizes: Sizes) -> Outcome<Tensor> {
        use Role::{HadamardCore1, HadamardCore2, HadamardLeft1, HadamardLeft2, HadamardRight1, HadamardRight2};
        let half = |left, core, right| {
            if self.tensors.contains_key(&core) {
                let left = self.matrix(left, None, Some(sizes.outputs))?.t()?.contiguous()?;
                self.tucker(Some(&left), core, right, sizes.inputs, sizes.places)
            } else {
                self.product(left, right, sizes.outputs, Some(sizes.inputs * sizes.places))
            }
        };
        let (first, rank) = half(HadamardLeft1, HadamardCore1, HadamardRight1)?;
        let (second, _) = half(HadamardLeft2, HadamardCore2, HadamardRight2)?;
        self.scaled((first * second)?, Some(rank))
    }

    /// LoKr (Yeh et al. 2024): the Kronecker product of a small matrix and a larger one, each whole or of low rank.
    fn kronecker(&self, sizes: Sizes) -> Outcome<Tensor> {
        use Role::{
            Kronecker1, Kronecker2, KroneckerCore2, KroneckerLeft1, KroneckerLeft2, KroneckerRight1, KroneckerRight2,
        };
        let whole = self.tensors.contains_key(&Kronecker1);
        let (left, right) = if whole { (Kronecker1, Kronecker1) } else { (KroneckerLeft1, KroneckerRight1) };
        let (rows, columns) = (self.matrix(left, None, None)?.dim(0)?, self.matrix(right, None, None)?.dim(1)?);
        if rows * columns == 0 || !sizes.outputs.is_multiple_of(rows) || !sizes.inputs.is_multiple_of(columns) {
            let reason = format!("makes {rows}x{columns}, which does not divide {}x{}", sizes.outputs, sizes.inputs);
            return Err(Failure::Part(left, reason));
        }
        let (small, mut rank) = if whole {
            (self.matrix(Kronecker1, None, None)?, None)
        } else {
            let (small, rank) = self.product(KroneckerLeft1, KroneckerRight1, rows, Some(columns))?;
            (small, Some(rank))
        };
        let (outputs, inputs) = (sizes.outputs / rows, sizes.inputs / columns);
        let large = if self.tensors.contains_key(&Kronecker2) {
            self.matrix(Kronecker2, Some(outputs), Some(inputs * sizes.places))?
        } else {
            let (large, r) = if self.tensors.contains_key(&KroneckerCore2) {
                let left = self.matrix(KroneckerLeft2, None, Some(outputs))?.t()?.contiguous()?;
                self.tucker(Some(&left), KroneckerCore2, KroneckerRight2, inputs, sizes.places)?
            } else {
                self.product(KroneckerLeft2, KroneckerRight2, outputs, Some(inputs * sizes.places))?
            };
            rank = Some(r);
            large
        };
        let width = inputs * sizes.places;
        let blocks = small.reshape((rows, 1, columns, 1))?.broadcast_mul(&large.reshape((1, outputs, 1, width))?)?;
        self.scaled(blocks.reshape((sizes.outputs, columns * width))?, rank)
    }

    /// IA3 (Liu et al. 2022) as LyCORIS has it: every row of the weight, or every column, times a number, is added to it.
    fn of_activation(&self, base: &Tensor, sizes: Sizes) -> Outcome<Tensor> {
        let (count, shape) = match self.on_input {
            true => (sizes.inputs, (1, sizes.inputs, 1)),
            false => (sizes.outputs, (sizes.outputs, 1, 1)),
        };
        let factors = self.vector(Role::Activation, count)?.reshape(shape)?;
        let matrices = base.reshape((sizes.outputs, sizes.inputs, sizes.places))?;
        Ok(matrices.broadcast_mul(&factors)?.reshape(base.dims())?)
    }

    /// A list of `count` numbers.
    fn vector(&self, role: Role, count: usize) -> Outcome<&Tensor> {
        let Some(tensor) = self.tensors.get(&role) else {
            return Err(Failure::Part(role, "is missing".into()));
        };
        if tensor.elem_count() != count {
            return Err(Failure::Part(role, format!("has shape {:?}, needed {count} values", tensor.dims())));
        }
        Ok(tensor)
    }

    /// A factor as a matrix, all but its first dimension in one.
    fn matrix(&self, role: Role, rows: Option<usize>, columns: Option<usize>) -> Outcome<Tensor> {
        let Some(tensor) = self.tensors.get(&role) else {
            return Err(Failure::Part(role, "is missing".into()));
        };
        let dims = tensor.dims();
        let found = (dims.first().copied().unwrap_or(0), dims.iter().skip(1).product::<usize>());
        let fits = |wanted: Option<usize>, found| wanted.is_none_or(|wanted| wanted == found);
        if dims.len() < 2 || !fits(rows, found.0) || !fits(columns, found.1) {
            let show = |size: Option<usize>| size.map_or("any".into(), |size| size.to_string());
            let reason = format!("has shape {dims:?}, needed {} rows and {} columns", show(rows), show(columns));
            return Err(Failure::Part(role, reason));
        }
        Ok(tensor.flatten_from(1)?)
    }

    /// `left @ right`, and the rank between the two.
    fn product(&self, left: Role, right: Role, rows: usize, columns: Option<usize>) -> Outcome<(Tensor, usize)> {
        let right = self.matrix(right, None, columns)?;
        let rank = right.dim(0)?;
        Ok((self.matrix(left, Some(rows), Some(rank))?.matmul(&right)?, rank))
    }

    /// A kernel in three factors: `sum_ab left[o, a] core[a, b, place] right[b, i]`, and the rank; without the left one, the other
    /// two as one factor, `sum_b core[a, b, place] right[b, i]`.
    fn tucker(
        &self,
        left: Option<&Tensor>,
        core: Role,
        right: Role,
        inputs: usize,
        places: usize,
    ) -> Outcome<(Tensor, usize)> {
        let right = self.matrix(right, None, Some(inputs))?;
        let inner = right.dim(0)?;
        if inner > MOST_RANK {
            return Err(Failure::Part(core, format!("has rank {inner}, more than {MOST_RANK}")));
        }
        let rank = left.map(|left| left.dim(1)).transpose()?;
        let core = self.matrix(core, rank, Some(inner * places))?;
        let halfway = match left {
            Some(left) => left.matmul(&core)?,
            None => core,
        };
        let rows = halfway.dim(0)?;
        let halfway = halfway.reshape((rows, inner, places))?.transpose(1, 2)?.contiguous()?;
        let kernel = halfway.reshape((rows * places, inner))?.matmul(&right)?;
        let kernel = kernel.reshape((rows, places, inputs))?.transpose(1, 2)?.contiguous()?;
        Ok((kernel.reshape((rows, inputs * places))?, inner))
    }

    fn scaled(&self, change: Tensor, rank: Option<usize>) -> Outcome<Tensor> {
        match (self.alpha, rank) {
            (Some(alpha), Some(rank)) => {
                let rank = rank.max(1) as f64;
                Ok((change * (alpha / if self.by_root_of_rank { rank.sqrt() } else { rank }))?)
            }
            _ => Ok(change),
        }
    }

    /// DoRA's lengths, `[outputs, 1, 1]` or `[1, inputs, 1]`.
    fn lengths(&self, sizes: Sizes) -> Outcome<Option<Tensor>> {
        let Sizes { outputs, inputs, .. } = sizes;
        if self.tensors.contains_key(&Role::Magnitude) {
            return Ok(Some(self.vector(Role::Magnitude, outputs)?.reshape((outputs, 1, 1))?));
        }
        let Some(lengths) = self.tensors.get(&Role::Scale) else { return Ok(None) };
        match (lengths.dims().first(), lengths.elem_count()) {
            (Some(&rows), count) if rows == outputs && count == outputs => Ok(Some(lengths.reshape((outputs, 1, 1))?)),
            (Some(1), count) if count == inputs => Ok(Some(lengths.reshape((1, inputs, 1))?)),
            _ => {
                let reason = format!("has shape {:?}, needed {outputs} rows or {inputs} columns", lengths.dims());
                Err(Failure::Part(Role::Scale, reason))
            }
        }
    }
}

/// `sum` times what brings the rows, or columns, of `alone` to these lengths (DoRA, Liu et al. 2024, equation 5).
fn rescaled(sum: &Tensor, alone: &Tensor, lengths: &Tensor, sizes: Sizes) -> Outcome<Tensor> {
    let matrices = (sizes.outputs, sizes.inputs, sizes.places);
    let squares = alone.reshape(matrices)?.sqr()?.sum_keepdim(2)?;
    let other = if lengths.dim(0)? == 1 { 0 } else { 1 };
    // A row of zeros has no direction, and stays one.
    let norms = squares.sum_keepdim(other)?.sqrt()?.clamp(f32::MIN_POSITIVE, f32::MAX)?;
    Ok(sum.reshape(matrices)?.broadcast_mul(&(lengths / norms)?)?.reshape(sum.dims())?)
}
