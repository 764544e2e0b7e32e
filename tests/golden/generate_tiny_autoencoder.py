"""A case with the tiny autoencoder (AutoencoderTiny) in the place of the model's.

    python generate_tiny_autoencoder.py OUT    # OUT/models holds sd15; writes OUT/models/taesd, OUT/cases/taesd-*

diffusers 0.42.1, transformers 5.23.0, torch 2.15.0; run and written by generate.py's code.
"""
import os
import sys
from types import SimpleNamespace

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

import generate as G

CONFIG = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [12] * 4, "num_encoder_blocks": [1, 2, 1, 1],
          "num_decoder_blocks": [2, 1, 1, 1]}
BASE = {"model": "sd15", "vae": "taesd", "guidance_scale": 7.5, "scheduler": {"name": "DDIMScheduler", "overrides": {}}}
CASES = [

    {**BASE, "name": "taesd-img2img", "kind": "img2img", "prompt": "a boat", "seed": 402, "steps": 5, "strength": 0.6,
     "init_image_spec": (64, 64, 41)},
]


def make(out):
    torch.manual_seed(6)
    model = AutoencoderTiny(**CONFIG)
    for p in model.parameters():
        p.data = torch.randn(p.shape) * (0.9 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.1)
    model.save_pretrained(f"{out}/models/taesd")


class Latents:
    """The encoder's answer; generate.py, which looks twice before the pipeline does, finds a distribution in it."""

    def __init__(self, latents):
        self.latents, self.looks = latents, 2

    def __getattr__(self, name):
        if name == "latent_dist" and self.looks > 0:
            self.looks -= 1
            return SimpleNamespace(mean=self.latents, logvar=torch.full_like(self.latents, -30.0))
        raise AttributeError(name)


plain_pipe = G.load_pipe


def load_pipe(out, case, dtype=torch.float32):
    pipe = plain_pipe(out, case, dtype)
    pipe.vae = AutoencoderTiny.from_pretrained(f"{out}/models/{case['vae']}").eval()
    encode = pipe.vae.encode
    pipe.vae.encode = lambda x: Latents(encode(x).latents)
    return pipe


G.load_pipe = load_pipe


def main():
    out = sys.argv[1]
    torch.set_num_threads(1)
    make(out)
    for case in CASES:
        print(case["name"], G.pipeline_case(out, case, SimpleNamespace(check64=False)))
        # It has no variance; and what no test reads is left out.
        file = f"{out}/cases/{case['name']}/stages.safetensors"
        G.wtensors(file, {k: v for k, v in load_file(file).items() if k.split(".")[0] not in ("noise", "alphas_cumprod") and k != "vae.encode.0.logvar"})


if __name__ == "__main__":
    main()
