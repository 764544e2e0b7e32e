"""The cases of guidance that `generate.py` does not make: perturbed-attention guidance by diffusers.

    python generate_guidance.py            # beside models/ and cases/

Same versions as generate.py. Writes cases/pag and cases/pag-alone: request and picture, no stages.
"""
import json
import os

import torch
from diffusers import DDIMScheduler, StableDiffusionPAGPipeline

HERE = os.path.dirname(os.path.abspath(__file__))

for name, seed, guidance_scale, pag_scale in [("pag", 101, 5.0, 3.0), ("pag-alone", 102, 1.0, 2.0)]:
    model = f"{HERE}/models/sd15"
    pipe = StableDiffusionPAGPipeline.from_pretrained(
        model, safety_checker=None, requires_safety_checker=False, pag_applied_layers=["mid"], local_files_only=True)
    base = json.load(open(f"{model}/scheduler/scheduler_config.json"))
    pipe.scheduler = DDIMScheduler.from_config({k: v for k, v in base.items() if not k.startswith("_")})
    request = dict(prompt="a photograph of an astronaut riding a horse", negative_prompt="blurry, low quality",
                   guidance_scale=guidance_scale, pag_scale=pag_scale, width=64, height=64)
    image = pipe(**request, num_inference_steps=6, generator=torch.Generator("cpu").manual_seed(seed)).images[0]
    folder = f"{HERE}/cases/{name}"
    os.makedirs(folder, exist_ok=True)
    image.save(f"{folder}/expected.png")
    case = dict(name=name, kind="txt2img-pag", model="sd15", seed=seed, steps=6, **request,
                scheduler=dict(name="DDIMScheduler", overrides={}, config={}), expected=["expected.png"])
    with open(f"{folder}/case.json", "w") as f:
        json.dump(case, f, indent=1)
