//! Loops compiled for the instruction set that the machine has.

/// Defines a function whose body is compiled for each instruction set and chosen at run time.
///
/// The body may ask the constant `FUSED` whether products and sums in one rounding are to be had. What it does without
/// them does not depend on the machine, since Rust never contracts a product and a sum by itself.
macro_rules! multiversion {
    (
        $(#[$meta:meta])* $vis:vis fn $name:ident<$T:ident: $bound:path>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        $body:block
    ) => {
        multiversion! { $(#[$meta])* $vis fn $name<$T: $bound, _FUSED>($($arg: $ty),*) $(-> $ret)? $body }
    };
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$T:ident: $bound:path, $FUSED:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$T: $bound>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$T: $bound, const $FUSED: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$T: $bound>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T, true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$T: $bound>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T, true>($($arg),*)
                }
                match crate::kernels::InstructionSet::in_use() {
                    crate::kernels::InstructionSet::Portable => {}
                    // SAFETY: an instruction set is only in use on a machine that has it.
                    crate::kernels::InstructionSet::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above; those that are higher have these instructions too.
                    _ => return unsafe { avx512($($arg),*) },
                }
            }
            body::<$T, { cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(super) use multiversion;

/// `e^x` by range reduction to `2^n * e^r`, `|r| <= ln 2 / 2`, and the Taylor polynomial of degree 7.
///
/// The truncation error is below 2^-27 relative; with the roundings of the polynomial the result is within
/// 2 units in the last place on `[-87, 88]`. Below, it is the value at -87 (1.6e-38); above, at 88.
#[inline(always)]
pub(super) fn exp_f32<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few bits, so that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LN2_LOW, multiply_add::<FUSED>(n, -LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    p = multiply_add::<FUSED>(p, r, 1.0 / 720.0);
    p = multiply_add::<FUSED>(p, r, 1.0 / 120.0);
    p = multiply_add::<FUSED>(p, r, 1.0 / 24.0);
    p = multiply_add::<FUSED>(p, r, 1.0 / 6.0);
    p = multiply_add::<FUSED>(p, r, 0.5);
    p = multiply_add::<FUSED>(p, r, 1.0);
    p = multiply_add::<FUSED>(p, r, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// `a * b + c`, in one rounding with `FUSED`.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `erfc(x)` by the Chebyshev fit of Press et al., Numerical Recipes (2nd ed., section 6.2), whose own error is
/// below 1.2e-7 relative.
#[inline(always)]
pub(super) fn erfc_f32<const FUSED: bool>(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 10] = [
        0.170_872_77,
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let z = x.abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = COEFFICIENTS[0];
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        p = multiply_add::<FUSED>(p, t, COEFFICIENTS[i]);
        i += 1;
    }
    let tail = t * exp_f32::<FUSED>(multiply_add::<FUSED>(z, -z, p));
    if x < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::{erfc_f32, exp_f32};

    /// Of the function's largest value, two; the exponent `p - z * z` is rounded to f32, so its relative error
    /// grows where the function vanishes.
    #[test]
    fn error_function_is_as_exact_as_its_use_needs() {
        for erfc in [erfc_f32::<false>, erfc_f32::<true>] {
            let worst = (-60_000..60_000)
                .map(|i| {
                    let x = i as f32 * 1e-4;
                    (f64::from(erfc(x)) - candle_core::cpu::erf::erfc_f64(f64::from(x))).abs()
                })
                .fold(0.0, f64::max);
            assert!(worst < 5e-7, "{worst}");
        }
    }

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        for exp in [exp_f32::<false>, exp_f32::<true>] {
            let worst = (-870_000..880_000)
                .map(|i| {
                    let x = i as f32 * 1e-4;
                    let exact = f64::from(x).exp();
                    ((f64::from(exp(x)) - exact) / exact).abs() / f64::from(f32::EPSILON)
                })
                .fold(0.0, f64::max);
            assert!(worst < 2.0, "{worst}");
        }
    }

    #[test]
    fn exponential_saturates() {
        for exp in [exp_f32::<false>, exp_f32::<true>] {
            assert!(exp(-1e9) < 2e-38 && exp(f32::NEG_INFINITY) >= 0.0);
            assert!(exp(1e9).is_finite());
        }
    }
}
