//! A solver of one's own, run on the embedded model beside DDIM.
//!
//! `cargo run --release --example custom_solver`
//!
//! The probability-flow ODE in the variables `y = x / alpha` and `s = sigma / alpha` is `dy/ds = epsilon`
//! (Song, Meng and Ermon 2021, equation 14). DDIM is its Euler method; here is the second-order
//! Adams-Bashforth method, which costs no more evaluations.

use candle_core::Tensor;
use std::error::Error;
use std::path::Path;
use tweedie::Result;
use tweedie::schedulers::{Run, Solver};
use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};

#[derive(Default)]
struct AdamsBashforth {
    /// The last step's noise and its length in `s`.
    last: Option<(Tensor, f64)>,
}

impl Solver for AdamsBashforth {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let prediction = run.predict(x, &from)?;
        if from.alpha == 0.0 {
            // From pure noise `y` is infinite: one step of DDIM.
            return Ok(((prediction.x0 * to.alpha)? + (prediction.epsilon * to.sigma)?)?);
        }
        let step = to.sigma / to.alpha - from.sigma / from.alpha;
        let slope = match &self.last {
            Some((last, length)) => {
                let ratio = step / (2.0 * length);
                ((&prediction.epsilon * (1.0 + ratio))? - (last * ratio)?)?
            }
            None => prediction.epsilon.clone(),
        };
        self.last = Some((prediction.epsilon, step));
        let y = ((x / from.alpha)? + (slope * step)?)?;
        Ok((y * to.alpha)?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let model = LatentDiffusion::builder().build()?;
    let request = TextToImageRequest {
        prompt: "a rocket on a black background".into(),
        steps: Some(12),
        seed: 2,
        ..TextToImageRequest::default()
    };
    let ddim = model.settle(&request)?;
    let own = ddim.clone().with_solver("adams-bashforth", || Box::new(AdamsBashforth::default()));
    for (name, settings) in [("ddim", ddim), ("adams-bashforth", own)] {
        let file = format!("rocket-{name}.png");
        for picture in model.generate_settled(&settings)?.pictures {
            picture.save(Path::new(&file), &[])?;
        }
        println!("saved {file}");
    }
    Ok(())
}
