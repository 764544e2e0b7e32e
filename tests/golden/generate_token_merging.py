"""Cases of token merging: diffusers with PyPI's tomesd 0.1.3, without its randomness.

    python generate_token_merging.py       # beside models/ and cases/

Same versions as generate.py. Writes cases/merged-half and cases/merged-odd: request and pictures, no stages. The second one's latents have
odd sides, so that the squares of two by two tokens leave some over.
"""
import json
import os

import tomesd
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

HERE = os.path.dirname(os.path.abspath(__file__))

for name, seed, share, (width, height) in [("merged-half", 111, 0.5, (64, 64)), ("merged-odd", 112, 0.6, (88, 72))]:
    model = f"{HERE}/models/sd15"
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False, local_files_only=True)
    base = json.load(open(f"{model}/scheduler/scheduler_config.json"))
    pipe.scheduler = DDIMScheduler.from_config({k: v for k, v in base.items() if not k.startswith("_")})
    request = dict(prompt="a photograph of an astronaut riding a horse", negative_prompt="blurry, low quality", guidance_scale=5.0,
                   width=width, height=height)
    draw = lambda: pipe(**request, num_inference_steps=6, generator=torch.Generator("cpu").manual_seed(seed)).images[0]
    plain = draw()
    tomesd.apply_patch(pipe, ratio=share, use_rand=False)
    image = draw()
    assert image.tobytes() != plain.tobytes()
    folder = f"{HERE}/cases/{name}"
    os.makedirs(folder, exist_ok=True)
    image.save(f"{folder}/expected.png")
    case = dict(name=name, kind="txt2img-merged", model="sd15", seed=seed, steps=6, **request, token_merging=share,
                scheduler=dict(name="DDIMScheduler", overrides={}, config={}), expected=["expected.png"])
    with open(f"{folder}/case.json", "w") as f:
        json.dump(case, f, indent=1)
