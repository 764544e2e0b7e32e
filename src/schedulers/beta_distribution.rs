//! The quantile function of the Beta distribution.

/// The `x` below which a Beta(a, b) variable lies with probability `p`.
///
/// By bisection of the regularised incomplete beta function, to the last bits of `x`.
pub(super) fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > f64::EPSILON * high {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            break;
        }
        if regularised_incomplete_beta(middle, a, b) < p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// `I_x(a, b)`, by the continued fraction of Abramowitz and Stegun 26.5.8, on the side where it converges.
fn regularised_incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    let factor = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    if x < (a + 1.0) / (a + b + 2.0) {
        factor / a * continued_fraction(x, a, b)
    } else {
        1.0 - factor / b * continued_fraction(1.0 - x, b, a)
    }
}

/// The fraction by the modified method of Lentz.
fn continued_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            change = d * c;
            value *= change;
        }
        if (change - 1.0).abs() < 1e-16 {
            break;
        }
    }
    value
}

/// `ln Gamma(x)` for `x > 0` by Stirling's series, after the recurrence has made the argument large.
fn ln_gamma(x: f64) -> f64 {
    let mut shift = 0.0;
    let mut x = x;
    while x < 15.0 {
        shift += x.ln();
        x += 1.0;
    }
    let (inverse, square) = (1.0 / x, 1.0 / (x * x));
    let series = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beta(1/2, 1/2) is the arcsine distribution, Beta(1, b) and Beta(a, 1) are powers: all invert by hand.
    #[test]
    fn closed_forms() {
        for i in 1..20 {
            let p = f64::from(i) / 20.0;
            let arcsine = (p * std::f64::consts::FRAC_PI_2).sin().powi(2);
            assert!((beta_quantile(p, 0.5, 0.5) - arcsine).abs() < 1e-13, "{p}");
            assert!((beta_quantile(p, 1.0, 3.0) - (1.0 - (1.0 - p).powf(1.0 / 3.0))).abs() < 1e-13, "{p}");
            assert!((beta_quantile(p, 2.5, 1.0) - p.powf(0.4)).abs() < 1e-13, "{p}");
        }
    }

    #[test]
    fn symmetric_and_rising() {
        assert!((beta_quantile(0.5, 0.6, 0.6) - 0.5).abs() < 1e-13);
        let quantiles: Vec<f64> = (0..=10).map(|i| beta_quantile(f64::from(i) / 10.0, 0.6, 0.6)).collect();
        assert!(quantiles.windows(2).all(|w| w[0] < w[1]));
        assert_eq!((quantiles[0], quantiles[10]), (0.0, 1.0));
        for i in 0..=10 {
            assert!((quantiles[i] + quantiles[10 - i] - 1.0).abs() < 1e-13);
        }
    }
}
