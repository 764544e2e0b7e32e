"""The first values of the UNet's output for the inputs of `tweedie bench`, of a small Stable Diffusion XL.

    python generate_bench.py      # beside models/; writes bench.json

diffusers 0.42.1, torch 2.15.0.
"""
import json
import os

import torch
from diffusers import UNet2DConditionModel

HERE = os.path.dirname(os.path.abspath(__file__))


def wave(shape, step, f):
    return f(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * step).reshape(shape)


rows = []
for model, numbers in [("xl-small", 6), ("xl-refiner", 5)]:
    unet = UNet2DConditionModel.from_pretrained(f"{HERE}/models/{model}/unet").eval()
    c, batch, size = unet.config, 2, 32
    side = size // 4  # the autoencoder's factor
    pooled = c.projection_class_embeddings_input_dim - numbers * c.addition_time_embed_dim
    ids = [size, size, 0, 0, size, size] if numbers == 6 else [size, size, 0, 0, 6]
    added = {"text_embeds": wave((batch, pooled), 0.11, torch.cos), "time_ids": torch.tensor([ids] * batch, dtype=torch.float32)}
    with torch.inference_mode():
        y = unet(wave((batch, 4, side, side), 0.37, torch.sin), 500.0, wave((batch, 77, c.cross_attention_dim), 0.11, torch.cos),
                 added_cond_kwargs=added).sample
    rows.append({"model": model, "size": size, "batch": batch, "unet_first": y.flatten()[:4].tolist()})
with open(f"{HERE}/bench.json", "w") as f:
    json.dump(rows, f, indent=1)
    f.write("\n")
