"""Pictures of the embedded model by diffusers, from the files in weights/emoji-ldm, computed in f32.

    python generate_embedded.py            # into pipelines/tests/emoji_reference/

diffusers 0.42.1, transformers 5.23.0, torch 2.15.0.
"""
import json
import os

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
MODEL, OUTPUT = f"{ROOT}/weights/emoji-ldm", f"{ROOT}/pipelines/tests/emoji_reference"
# Prompt, negative prompt, seed, steps, guidance, width, height.
CASES = [
    ("a cat", "", 0, 25, 4.0, 128, 128),
    ("a red apple on a blue background", "", 1, 25, 4.0, 128, 128),
    ("a rocket in space, fluent style", "", 2, 25, 4.0, 128, 128),
    ("a pizza, noto style", "", 3, 25, 4.0, 128, 128),
    ("a panda on a pink background", "", 4, 12, 4.0, 128, 128),
    ("a castle on a yellow background, flat style", "", 5, 25, 6.0, 128, 128),
    ("a fox on a blue background", "", 6, 25, 4.0, 128, 128),
    ("an emoji of a robot on a green background", "red", 7, 25, 4.0, 128, 128),
    ("a penguin and a birthday cake", "", 8, 25, 4.0, 128, 128),
    ("a sunflower on a purple background", "", 9, 25, 1.0, 128, 128),
    ("", "", 10, 10, 1.0, 128, 128),
    ("a small sailboat in the top left at sunset", "", 11, 25, 4.0, 160, 96),
]

pipeline = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
rows = []
for i, (prompt, negative, seed, steps, guidance, width, height) in enumerate(CASES):
    picture = pipeline(
        prompt,
        negative_prompt=negative or None,
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    picture.save(f"{OUTPUT}/{i:02}.png")
    names = ["prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height"]
    rows.append({"file": f"{i:02}.png", **dict(zip(names, CASES[i]))})
versions = {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
with open(f"{OUTPUT}/reference.json", "w") as f:
    json.dump({**versions, "cases": rows}, f, indent=1)
    f.write("\n")
