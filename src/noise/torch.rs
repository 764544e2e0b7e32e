//! `torch.Generator("cpu")` and `torch.randn` in f32, number for number.

/// State size of the Mersenne Twister (Matsumoto and Nishimura, 1998).
const N: usize = 624;
const M: usize = 397;

/// The Mersenne Twister mt19937 with PyTorch's way of making normal values from it.
///
/// `TorchGenerator::new(seed)` is `torch.Generator("cpu").manual_seed(seed)`: of the 64-bit seed PyTorch's
/// engine uses the low 32 bits.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    state: [u32; N],
    next: usize,
    /// The second value of the last pair of the short path, kept for the next short draw.
    spare: Option<f64>,
}

impl TorchGenerator {
    /// A generator in the state that `manual_seed(seed)` leaves.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N, spare: None }
    }

    /// The next 32 uniform bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// Uniform in `[0, 1)` with 24 random bits: `torch.rand` in f32.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & ((1 << 24) - 1)) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// The values of `torch.rand(count, generator=self)` in f32.
    pub fn uniform(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform_f32()).collect()
    }

    /// Uniform in `[0, 1)` with 53 random bits, the high word drawn first.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The values of `torch.randn(count, generator=self)` in f32, to within 3e-6.
    ///
    /// PyTorch has two paths. From 16 values on it fills with f32 uniforms and applies the Box-Muller
    /// transform to blocks of 16 (the first eight give the radius, the others the angle), drawing the last
    /// 16 anew if the count is no multiple of 16. Below 16 it makes f64 pairs one by one.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.next_pairwise() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        let whole = count - count % 16;
        values[..whole].chunks_exact_mut(16).for_each(box_muller_block);
        if whole != count {
            let tail = &mut values[count - 16..];
            tail.fill_with(|| self.uniform_f32());
            box_muller_block(tail);
        }
        values
    }

    fn next_pairwise(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let angle = 2.0 * std::f64::consts::PI * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

fn box_muller_block(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = 2.0 * std::f32::consts::PI * *b;
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard states the 10,000th output of mt19937 with its default seed (26.5.5).
    #[test]
    fn ten_thousandth_draw_of_the_default_seed() {
        let mut generator = TorchGenerator::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn only_the_low_half_of_the_seed_counts() {
        let a = TorchGenerator::new(7).normal(40);
        let b = TorchGenerator::new(7 + (1 << 32)).normal(40);
        assert_eq!(a, b);
    }

    #[test]
    fn moments_are_those_of_a_standard_normal() {
        let values = TorchGenerator::new(3).normal(200_000);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        // Four standard errors: 4 / sqrt(n) for the mean, 4 * sqrt(2 / n) for the variance.
        assert!(mean.abs() < 0.009, "{mean}");
        assert!((variance - 1.0).abs() < 0.013, "{variance}");
    }
}
