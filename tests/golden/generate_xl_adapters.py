"""Cases of Stable Diffusion XL with a LoRA and with a textual inversion for both text encoders.

    python generate_xl_adapters.py      # beside models/xl-small; writes models/lora, models/embedding and cases/xl-lora, xl-word

diffusers 0.42.1, transformers 5.23.0, torch 2.15.0, peft 0.21.2; run and written by generate.py's code. The LoRA has the
names of kohya's scripts for XL, which are those of the original code; it is merged here and, to compare, loaded by diffusers,
whose picture must be within one level.
"""
import json
import math
import os
import re
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

import generate as G

HERE = os.path.dirname(os.path.abspath(__file__))
LORA, WORD = "lora/xl.safetensors", "embedding/xl-word.safetensors"
BASE = {"model": "xl-small", "steps": 3, "guidance_scale": 6.0, "width": 32, "height": 32}
CASES = [
    {**BASE, "name": "xl-lora", "kind": "txt2img-xl", "prompt": "a cat", "prompt_2": "fur", "seed": 501,
     "lora": {"file": LORA, "format": "kohya", "scale": 0.7}},
    {**BASE, "name": "xl-word", "kind": "txt2img-xl", "prompt": "a <word> cat", "negative_prompt": "a <word>", "seed": 502,
     "embedding": {"file": WORD, "token": "<word>"}},
]


def original_name(path):
    """Of a module of xl-small's UNet, which has one layer at each of two resolutions."""
    for pattern, name in [(r"down_blocks\.(\d)\.attentions\.0\.(.*)", lambda m: f"input_blocks_{2 * int(m[1]) + 1}_1_{m[2]}"),
                          (r"mid_block\.attentions\.0\.(.*)", lambda m: f"middle_block_1_{m[1]}"),
                          (r"up_blocks\.(\d)\.attentions\.(\d)\.(.*)", lambda m: f"output_blocks_{2 * int(m[1]) + int(m[2])}_1_{m[3]}")]:
        if m := re.fullmatch(pattern, path):
            return name(m).replace(".", "_")
    raise ValueError(path)


def targets(pipe):
    for path, m in sorted(pipe.unet.named_modules()):
        if isinstance(m, torch.nn.Linear) and ".attentions." in path:
            yield f"lora_unet_{original_name(path)}", m
    for which, encoder in [("te1", pipe.text_encoder), ("te2", pipe.text_encoder_2)]:
        for path, m in sorted(encoder.named_modules()):
            if isinstance(m, torch.nn.Linear) and ("self_attn" in path or "mlp" in path):
                path = path if path.startswith("text_model.") else "text_model." + path
                yield f"lora_{which}_{path.replace('.', '_')}", m


def make():
    pipe = G.load_pipe(HERE, CASES[0])
    g, sd, rank = torch.Generator("cpu").manual_seed(21), {}, 2
    for base, m in targets(pipe):
        o, n = m.weight.shape
        sd[f"{base}.lora_down.weight"] = torch.randn((rank, n), generator=g) / math.sqrt(n)
        sd[f"{base}.lora_up.weight"] = torch.randn((o, rank), generator=g) * 0.08
        sd[f"{base}.alpha"] = torch.tensor(1.5)
    G.wtensors(f"{HERE}/models/{LORA}", sd)
    widths = [e.config.hidden_size for e in (pipe.text_encoder, pipe.text_encoder_2)]
    G.wtensors(f"{HERE}/models/{WORD}", {n: torch.randn((2, w), generator=g) for n, w in zip(["clip_l", "clip_g"], widths)})


@torch.no_grad()
def apply_lora(out, pipe, case):
    sd, scale = load_file(f"{out}/models/{LORA}"), case["lora"]["scale"]
    for base, m in targets(pipe):
        down, up = sd[f"{base}.lora_down.weight"], sd[f"{base}.lora_up.weight"]
        alpha = float(sd[f"{base}.alpha"])
        m.weight.add_((scale * alpha / down.shape[0] * up.double() @ down.double()).to(m.weight.dtype))


plain_pipe = G.load_pipe


def load_pipe(out, case, dtype=torch.float32):
    pipe = plain_pipe(out, case, dtype)
    if case["name"] == "xl-word":
        sd = load_file(f"{out}/models/{WORD}")
        for name, encoder, tokenizer in [("clip_l", pipe.text_encoder, pipe.tokenizer), ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2)]:
            pipe.load_textual_inversion(sd[name], token="<word>", text_encoder=encoder, tokenizer=tokenizer)
    return pipe


if __name__ == "__main__":
    torch.set_num_threads(1)
    make()
    G.load_pipe, G.apply_lora = load_pipe, apply_lora
    for case in CASES:
        # The word is in the pipeline already.
        run = {k: v for k, v in case.items() if k != "embedding"}
        print(case["name"], G.pipeline_case(HERE, run, SimpleNamespace(check64=False)))
        folder, unread = f"{HERE}/cases/{case['name']}", ("noise", "alphas_cumprod")
        with open(f"{folder}/case.json") as f:
            written = json.load(f)
        G.wjson(f"{folder}/case.json", {**case, **written})
        stages = load_file(f"{folder}/stages.safetensors")
        G.wtensors(f"{folder}/stages.safetensors", {k: v for k, v in stages.items() if k.split(".")[0] not in unread})
