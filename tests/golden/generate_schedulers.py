"""Reference runs of schedulers on a network that is a formula.

    pip install torch==2.15.0 diffusers==0.42.1 scipy safetensors
    python generate_schedulers.py

writes schedulers/<name>/case.json and stages.safetensors beside this file. The network is
eps = 0.6 sin(x_in) + 0.1 cos(t / 100), where x_in is what scale_model_input makes of the sample. `start` is the
first noise times init_noise_sigma, also where the run starts at a later step, `traj[i]` the sample after step i, `model_in` what the network was given.
"""
import inspect
import json
import math
import os

import diffusers
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
LATENT = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
RANGE = dict(sigma_min=0.05, sigma_max=12.0)
MULTI, SINGLE, UNIPC, DEIS = (f"{n}Scheduler" for n in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"))
EULER, EDM = "EulerDiscreteScheduler", "EDMEulerScheduler"

# name, class, steps, fields, arguments of step the step that the run starts at, given levels
CASES = [
    ("tcd", "TCDScheduler", 4, {}, {}),
    ("tcd-eta0", "TCDScheduler", 4, {}, {"eta": 0.0}),
    ("tcd-v-eta1", "TCDScheduler", 6, {"prediction_type": "v_prediction", "original_inference_steps": 25}, {"eta": 1.0}),
    ("lcm-threshold", "LCMScheduler", 3, {"thresholding": True, "sample_max_value": 1.5}, {}),
    ("edm-euler", EDM, 8, {}, {}),
    ("edm-euler-exponential-v", EDM, 8, {"sigma_schedule": "exponential", "prediction_type": "v_prediction", "sigma_data": 1.0}, {}),
    ("edm-euler-sigma-min", EDM, 6, {"final_sigmas_type": "sigma_min", "rho": 5.0, "sigma_max": 20.0}, {}),
    ("euler-log-linear", EULER, 7, {**LATENT, "interpolation_type": "log_linear"}, {}),
    ("euler-continuous", EULER, 7, {**LATENT, "timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 20.0}, {}),
    ("euler-a-zsnr", "EulerAncestralDiscreteScheduler", 7, {**LATENT, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "linspace"}, {}),
    ("heun-clip-beta", "HeunDiscreteScheduler", 5, {**LATENT, "clip_sample": True, "clip_sample_range": 1.5, "use_beta_sigmas": True}, {}),
    ("heun-exp", "HeunDiscreteScheduler", 5, {"beta_schedule": "exp", "num_train_timesteps": 100}, {}),
    ("dpm2-exponential-trailing", "KDPM2DiscreteScheduler", 5, {**LATENT, "use_exponential_sigmas": True, "timestep_spacing": "trailing"}, {}),
    ("dpm2-a-leading-default", "KDPM2AncestralDiscreteScheduler", 5, {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    ("lms-exponential-20", "LMSDiscreteScheduler", 20, {**LATENT, "use_exponential_sigmas": True}, {}),
    ("pndm-linspace", "PNDMScheduler", 7, {**LATENT, "skip_prk_steps": True, "timestep_spacing": "linspace"}, {}),
    ("pndm-prk-trailing-v", "PNDMScheduler", 7, {**LATENT, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, {}),
    ("dpm-3m", MULTI, 9, {**LATENT, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": False}, {}),
    ("dpm-2m-heun-threshold", MULTI, 8, {**LATENT, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": "heun", "thresholding": True, "sample_max_value": 2.0}, {}),
    ("dpm-2m-sde-heun-sample", MULTI, 8, {**LATENT, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": "heun", "prediction_type": "sample"}, {}),
    ("dpmpp-3m-sde", MULTI, 9, {**LATENT, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}, {}),
    ("dpmpp-2m-beta", MULTI, 8, {**LATENT, "use_beta_sigmas": True}, {}),
    ("dpmpp-2m-zsnr", MULTI, 8, {**LATENT, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, {}),
    ("dpmpp-2m-from-unipc", MULTI, 6, {**LATENT, "solver_type": "bh2", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"}, {}),
    ("dpmpp-s3-heun", SINGLE, 10, {**LATENT, "solver_order": 3, "solver_type": "heun"}, {}),
    ("dpmpp-s3-sde-heun", SINGLE, 9, {**LATENT, "solver_order": 3, "solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}, {}),
    ("dpm-s3-midpoint", SINGLE, 9, {**LATENT, "solver_order": 3, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {}),
    ("dpm-s2-heun-clipped", SINGLE, 8, {"beta_schedule": "squaredcos_cap_v2", "algorithm_type": "dpmsolver", "solver_type": "heun", "final_sigmas_type": "sigma_min", "lambda_min_clipped": -5.1}, {}),
    ("dpmpp-s1-exponential", SINGLE, 6, {**LATENT, "solver_order": 1, "use_exponential_sigmas": True}, {}),
    ("unipc-order1", UNIPC, 6, {**LATENT, "solver_order": 1}, {}),
    ("unipc-order3-leading-threshold", UNIPC, 9, {**LATENT, "solver_order": 3, "timestep_spacing": "leading", "steps_offset": 1, "thresholding": True, "sample_max_value": 1.5}, {}),
    ("unipc-eps-bh1-order3", UNIPC, 9, {**LATENT, "solver_order": 3, "solver_type": "bh1", "predict_x0": False, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"}, {}),
    ("unipc-beta-range", UNIPC, 8, {**LATENT, "use_beta_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}, {}),
    ("unipc-zsnr", UNIPC, 8, {**LATENT, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, {}),
    ("deis-order1", DEIS, 6, {**LATENT, "solver_order": 1}, {}),
    ("deis-threshold-16", DEIS, 16, {**LATENT, "thresholding": True, "sample_max_value": 1.5}, {}),
    ("pndm-start-3", "PNDMScheduler", 10, {**LATENT, "skip_prk_steps": True, "steps_offset": 1}, {"start": 3}),
    ("pndm-start-1", "PNDMScheduler", 10, {**LATENT, "skip_prk_steps": True, "steps_offset": 1}, {"start": 1}),
    ("lms-start-3", "LMSDiscreteScheduler", 8, LATENT, {"start": 3}),
    ("heun-start-2", "HeunDiscreteScheduler", 5, LATENT, {"start": 2}),
    ("dpm2-start-2", "KDPM2DiscreteScheduler", 5, LATENT, {"start": 2}),
    ("dpm2-a-start-2", "KDPM2AncestralDiscreteScheduler", 5, LATENT, {"start": 2}),
    ("dpmpp-3m-start-4", MULTI, 10, {**LATENT, "solver_order": 3}, {"start": 4}),
    ("dpmpp-s2-start-3", SINGLE, 9, LATENT, {"start": 3}),
    ("dpmpp-s3-start-2", SINGLE, 9, {**LATENT, "solver_order": 3}, {"start": 2}),
    ("unipc-start-3", UNIPC, 8, {**LATENT, "solver_order": 3}, {"start": 3}),
    ("deis-start-3", DEIS, 8, {**LATENT, "solver_order": 3}, {"start": 3}),
    ("lcm-start-2", "LCMScheduler", 6, {}, {"start": 2}),
    ("tcd-start-2", "TCDScheduler", 6, {}, {"start": 2}),
    ("euler-timesteps", EULER, 4, LATENT, {"timesteps": [999, 700, 333, 50]}),
    ("euler-sigmas", EULER, 4, LATENT, {"sigmas": [14.615, 3.861, 1.396, 0.399, 0.0]}),
    ("heun-timesteps", "HeunDiscreteScheduler", 4, LATENT, {"timesteps": [999, 700, 333, 50]}),
    ("dpmpp-2m-timesteps", MULTI, 10, LATENT, {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}),
    ("deis-exponential-leading", DEIS, 8, {**LATENT, "use_exponential_sigmas": True, "timestep_spacing": "leading"}, {}),
    ("euler-cosine-karras", EULER, 7, {**COSINE, "use_karras_sigmas": True}, {}),
    ("heun-cosine-exponential", "HeunDiscreteScheduler", 5, {**COSINE, "use_exponential_sigmas": True, "rescale_betas_zero_snr": True}, {}),
    ("lms-cosine-karras", "LMSDiscreteScheduler", 8, {**COSINE, "use_karras_sigmas": True}, {}),
    ("heun-karras-range", "HeunDiscreteScheduler", 5, {**LATENT, "use_karras_sigmas": True, **RANGE}, {}),
    ("dpm2-beta-range", "KDPM2DiscreteScheduler", 5, {**LATENT, "use_beta_sigmas": True, **RANGE}, {}),
    ("dpm2-a-exponential-range", "KDPM2AncestralDiscreteScheduler", 5, {**LATENT, "use_exponential_sigmas": True, **RANGE}, {}),
    ("lms-karras-range", "LMSDiscreteScheduler", 8, {**LATENT, "use_karras_sigmas": True, **RANGE}, {}),
    ("lms-beta-range", "LMSDiscreteScheduler", 8, {**LATENT, "use_beta_sigmas": True, **RANGE}, {}),
    ("dpmpp-2m-karras-range", MULTI, 8, {**LATENT, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min", **RANGE}, {}),
    ("dpmpp-2m-lu-range", MULTI, 8, {**LATENT, "use_lu_lambdas": True, **RANGE}, {}),
    ("dpmpp-s2-exponential-range", SINGLE, 8, {**LATENT, "use_exponential_sigmas": True, **RANGE}, {}),
    ("deis-karras-range", DEIS, 8, {**LATENT, "use_karras_sigmas": True, **RANGE}, {}),
]


def public(value):
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def write(index, name, kind, steps, fields, arguments):
    # as a model's file is read, whose fields need not be the class's own
    scheduler = getattr(diffusers, kind).from_config(fields)
    given = {k: arguments[k] for k in ("timesteps", "sigmas") if k in arguments}
    scheduler.set_timesteps(**given) if given else scheduler.set_timesteps(steps)
    seed = 900 + index
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, 2, 4, 4)
    x = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    out = {"start": x.clone(), "timesteps": scheduler.timesteps.double()}
    if hasattr(scheduler, "sigmas"):
        # log_linear makes one sigma more than there are steps to reach it
        extra = fields.get("interpolation_type") == "log_linear"
        out["sigmas"] = scheduler.sigmas[: -1 if extra else None].double()
    if hasattr(scheduler, "alphas_cumprod"):
        out["alphas_cumprod"] = scheduler.alphas_cumprod
        out["betas.head"], out["betas.tail"] = scheduler.betas[:8].double(), scheduler.betas[-8:].double()
    arguments = dict(arguments)
    step_arguments = {k: v for k, v in arguments.items() if k not in given}
    # as the image-to-image pipelines do
    first = step_arguments.pop("start", 0) * scheduler.order
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_arguments["generator"] = generator
    states, inputs = [], []
    out["timesteps"] = out["timesteps"][first:]
    for t in scheduler.timesteps[first:]:
        scaled = scheduler.scale_model_input(x, t)
        eps = 0.6 * torch.sin(scaled) + 0.1 * math.cos(float(t) / 100)
        x = scheduler.step(eps, t, x, **step_arguments).prev_sample
        states.append(x.clone()), inputs.append(scaled.clone())
    out["traj"], out["model_in"] = torch.stack(states), torch.stack(inputs)
    assert bool(torch.isfinite(out["traj"]).all()), name
    folder = f"{HERE}/schedulers/{name}"
    os.makedirs(folder, exist_ok=True)
    save_file({k: v.contiguous() for k, v in out.items()}, f"{folder}/stages.safetensors")
    case = {"name": name, "scheduler": {"name": kind, "config": {k: public(v) for k, v in fields.items()}}, "steps": steps,
            "seed": seed, "shape": shape, "diffusers": diffusers.__version__, "torch": torch.__version__, **arguments}
    with open(f"{folder}/case.json", "w") as f:
        json.dump(case, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    for index, case in enumerate(CASES):
        write(index, *case)
