"""More cases with control models: several at once, windows, other tasks than text to image, T2I-Adapter.

    python generate_control.py OUT         # OUT/models holds sd15 and controlnet; writes OUT/cases/control-*, t2i-*

diffusers 0.42.1, transformers 5.23.0, torch 2.15.0; run and written by generate.py's code. A case's "controls" are its
models, each with its picture, scale, start and end.
"""
import json
import os
import sys
from types import SimpleNamespace

import diffusers
import torch
from PIL import Image
from safetensors.torch import load_file

import generate as G

PIPES = {"txt2img": "StableDiffusionControlNetPipeline", "img2img": "StableDiffusionControlNetImg2ImgPipeline",
         "inpaint": "StableDiffusionControlNetInpaintPipeline"}
plain_args = G.call_args


class AdapterPipeline(diffusers.StableDiffusionAdapterPipeline):
    """Reports steps as the other pipelines do."""

    def __call__(self, *, callback_on_step_end, **kw):
        return super().__call__(**kw, callback=lambda i, t, latents: callback_on_step_end(self, i, t, {"latents": latents}))


def load_pipe(out, case, dtype=torch.float32):
    folder = f"{out}/models/{case['model']}"
    adapter = case["controls"][0]["model"].startswith("t2i")
    models = [(diffusers.T2IAdapter if adapter else diffusers.ControlNetModel).from_pretrained(f"{out}/models/{c['model']}")
              for c in case["controls"]]
    models = models[0] if len(models) == 1 else (diffusers.MultiAdapter(models) if adapter else models)
    cls = AdapterPipeline if adapter else getattr(diffusers, PIPES[case["kind"]])
    pipe = cls.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, local_files_only=True,
        **{"adapter" if adapter else "controlnet": models})
    pipe.set_progress_bar_config(disable=True)
    with open(f"{folder}/scheduler/scheduler_config.json") as f:
        base = {k: v for k, v in json.load(f).items() if not k.startswith("_")}
    pipe.scheduler = G.scheduler_of(base, case["scheduler"])
    return pipe


def call_args(out, folder, case):
    kw = plain_args(out, folder, case)
    controls = case["controls"]
    one = lambda values: values[0] if len(values) == 1 else values
    images = one([Image.open(f"{folder}/{c['image']}").convert("L" if c["model"] == "t2i-full" else "RGB") for c in controls])
    if controls[0]["model"].startswith("t2i"):
        kw.update(image=images, adapter_conditioning_scale=one([c["scale"] for c in controls]))
        return kw
    kw["image" if case["kind"] == "txt2img" else "control_image"] = images
    kw.update(controlnet_conditioning_scale=one([float(c["scale"]) for c in controls]),
              control_guidance_start=[c["start"] for c in controls], control_guidance_end=[c["end"] for c in controls])
    return kw


G.load_pipe, G.call_args = load_pipe, call_args


def control(model, image, scale, start=0.0, end=1.0):
    return {"model": model, "image": image, "scale": scale, "start": start, "end": end}


BASE = {"model": "sd15", "guidance_scale": 7.5, "width": 64, "height": 64}
DDIM, HEUN = ({"name": n, "overrides": {}} for n in ("DDIMScheduler", "HeunDiscreteScheduler"))
CASES = [
    {**BASE, "name": "control-two", "kind": "txt2img", "prompt": "a bridge", "seed": 301, "steps": 5, "scheduler": HEUN,
     "controls": [control("controlnet", "control.0.png", 0.8, 0.0, 0.7), control("controlnet", "control.1.png", 0.5, 0.3, 1.0)]},
    {**BASE, "name": "control-img2img", "kind": "img2img", "prompt": "a tower", "seed": 302, "steps": 6, "strength": 0.7,
     "init_image_spec": (64, 64, 21), "scheduler": DDIM, "controls": [control("controlnet", "control.0.png", 0.7, 0.0, 0.5)]},
    {**BASE, "name": "control-inpaint", "kind": "inpaint", "prompt": "a door", "seed": 303, "steps": 4,
     "strength": 1.0, "init_image_spec": (64, 64, 22), "mask_image_spec": (64, 64, 23), "scheduler": DDIM,
     "controls": [control("controlnet", "control.0.png", 0.9)]},
]
CASES += [
    {**BASE, "name": "control-guess", "kind": "txt2img", "prompt": "", "seed": 306, "steps": 4, "scheduler": DDIM,
     "guidance_scale": 4.0, "guess_mode": True, "controls": [control("controlnet", "control.0.png", 0.9)]},
    {**BASE, "name": "t2i-full", "kind": "txt2img", "prompt": "a mill", "seed": 304, "steps": 4, "scheduler": DDIM,
     "controls": [control("t2i-full", "control.0.png", 0.8)]},
    {**BASE, "name": "t2i-light", "kind": "txt2img", "prompt": "a mill", "seed": 305, "steps": 4, "scheduler": DDIM,
     "controls": [control("t2i-light", "control.0.png", 1.0)]},
]

# T2I-Adapters of two kinds, at the tiny UNet's two resolutions.
ADAPTERS = {"t2i-full": {"in_channels": 1, "channels": [24, 40], "num_res_blocks": 1, "adapter_type": "full_adapter"},
            "t2i-light": {"in_channels": 3, "channels": [24, 40], "num_res_blocks": 2, "adapter_type": "light_adapter"}}


def make_adapters(out):
    for name, config in ADAPTERS.items():
        torch.manual_seed(len(name))
        model = diffusers.T2IAdapter(**config, downscale_factor=8)
        for p in model.parameters():
            p.data = torch.randn(p.shape) * (1.2 / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.1)
        model.save_pretrained(f"{out}/models/{name}")


def main():
    out = sys.argv[1]
    torch.set_num_threads(1)
    make_adapters(out)
    for case in CASES:
        folder = f"{out}/cases/{case['name']}"
        os.makedirs(folder, exist_ok=True)
        for i, c in enumerate(case["controls"]):
            # A picture of another size is resized.
            picture = Image.fromarray(G.photo(80 if i else 64, 64, 31 + i))
            # diffusers takes a grey picture where an adapter has one channel.
            (picture.convert("L") if c["model"] == "t2i-full" else picture).save(f"{folder}/{c['image']}")
        print(case["name"], G.pipeline_case(out, case, SimpleNamespace(check64=False)))
        # What no test reads is left out.
        stages = load_file(f"{folder}/stages.safetensors")
        G.wtensors(f"{folder}/stages.safetensors", {k: v for k, v in stages.items() if k.split(".")[0] not in ("noise", "alphas_cumprod")
                                                    and k not in ("latents.step_output", "vae.encode.1.in", "vae.encode.1.mean", "vae.encode.1.logvar")})


if __name__ == "__main__":
    main()
