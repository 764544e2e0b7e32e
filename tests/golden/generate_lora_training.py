"""Fifty steps of training a LoRA by diffusers and PEFT, with the timesteps and the noise that this program draws.

    python generate_lora_training.py       # into training/lora-unet/ and training/lora-text/

peft 0.21.2, diffusers 0.42.1, transformers 5.23.0, torch 2.15.0, numpy, safetensors. The model is models/sd15. Each folder holds

case.json             rank, alpha, learning rate, seed, captions, and the loss of every step
tensors.safetensors   the latents of five batches, and the factors before the first step (start.NAME) and after the last (end.NAME)
"""
import json
import os

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = f"{HERE}/models/sd15"
MASK = 2**64 - 1
STEPS, SEED, RANK, ALPHA, RATE = 50, 5, 2, 3.0, 2e-3
CAPTIONS = ["a fox", "an owl on a branch", "a lighthouse in a storm"]
TIMESTEPS, NOISE = 1, 2


def mix(seed):
    """The first output of SplitMix64."""
    z = (seed + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def stream(which, step):
    return mix((mix((mix(SEED) + which) & MASK) + step) & MASK) & 0xFFFFFFFF


def timesteps(step, count):
    bits = np.random.RandomState(stream(TIMESTEPS, step)).randint(0, 2**32, count, dtype=np.uint32)
    return torch.tensor([(int(b) * 1000) >> 32 for b in bits])


def noise(step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(stream(NOISE, step)))


def factors(model, component):
    inner = "" if component == "unet" else "text_model."
    named = {}
    for name, value in get_peft_model_state_dict(model).items():
        whole = name if name.startswith(inner) else inner + name
        named[f"{component}.{whole}"] = value.detach().clone().contiguous()
    return named


def train(name, with_text):
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/unet").eval().requires_grad_(False)
    text = CLIPTextModel.from_pretrained(f"{MODEL}/text_encoder").eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(f"{MODEL}/tokenizer")
    scheduler = DDPMScheduler.from_pretrained(f"{MODEL}/scheduler")
    lora = lambda modules: LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=modules)
    unet.add_adapter(lora(["to_q", "to_k", "to_v", "to_out.0"]))
    models = [("unet", unet)]
    if with_text:
        text.add_adapter(lora(["q_proj", "k_proj", "v_proj", "out_proj"]))
        models.append(("text_encoder", text))
    sets = [[p for p in model.parameters() if p.requires_grad] for _, model in models]
    optimizers = [torch.optim.AdamW(s, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) for s in sets]
    tensors = {"latents": torch.randn(5, 2, 4, 8, 8, generator=torch.Generator().manual_seed(9))}
    for component, model in models:
        tensors.update({f"start.{k}": v for k, v in factors(model, component).items()})
    losses = []
    for step in range(STEPS):
        latents = tensors["latents"][step % 5]
        captions = [CAPTIONS[(step + i) % 3] for i in range(2)]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        t, e = timesteps(step, 2), noise(step, latents.shape)
        out = unet(scheduler.add_noise(latents, e, t), t, text(ids)[0]).sample
        loss = torch.nn.functional.mse_loss(out, e)
        loss.backward()
        for parameters, optimizer in zip(sets, optimizers):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    for component, model in models:
        tensors.update({f"end.{k}": v for k, v in factors(model, component).items()})
    folder = f"{HERE}/training/{name}"
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, f"{folder}/tensors.safetensors")
    case = {"rank": RANK, "alpha": ALPHA, "lr": RATE, "seed": SEED, "captions": CAPTIONS, "losses": losses}
    with open(f"{folder}/case.json", "w") as f:
        json.dump(case, f, indent=1)
        f.write("\n")
    print(name, losses[0], losses[-1], len(tensors))


train("lora-unet", False)
train("lora-text", True)
