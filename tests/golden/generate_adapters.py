"""Weights before and after adapters of every kind are merged into them.

    python generate_adapters.py            # into adapters/

peft 0.21.2, diffusers 0.42.1, torch 2.15.0, safetensors. adapters/base.safetensors holds two layers of
a "UNet", down_blocks.0.linear [12, 10] and down_blocks.0.conv [12, 10, 3, 3]; each folder beside it

lora.N.safetensors    the adapters, under the names that the program which makes such files gives them
merged.safetensors    the same layers with all of them merged
case.json             what each adapter is multiplied by

PEFT merges where it has the kind; LoCon's three factors and LyCORIS's DoRA over columns, which it has not, are written
here from their definitions.
"""
import json
import os

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "adapters")


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.linear = torch.nn.Linear(10, 12)
        self.conv = torch.nn.Conv2d(10, 12, 3, padding=1)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g) / 3

    def forward(self, x):
        return self.conv(x)


def save(name, base, adapters, merged, weights):
    folder = f"{HERE}/{name}"
    os.makedirs(folder, exist_ok=True)
    named = lambda d: {f"down_blocks.0.{k}.weight": v.contiguous() for k, v in d.items()}
    save_file(named(base), f"{HERE}/base.safetensors")  # the same every time
    save_file(named(merged), f"{folder}/merged.safetensors")
    for i, (tensors, metadata) in enumerate(adapters):
        save_file({k: v.contiguous() for k, v in tensors.items()}, f"{folder}/lora.{i}.safetensors", metadata)
    with open(f"{folder}/case.json", "w") as f:
        json.dump({"weights": weights}, f)
        f.write("\n")


def weights(model):
    return {"linear": model.linear.weight.detach().clone(), "conv": model.conv.weight.detach().clone()}


def peft_case(name, configs, scales, kind, metadata=None, rename=lambda k: k):
    model = Layers()
    base = weights(model)
    peft = get_peft_model(model, configs[0], adapter_name="a0")
    for i, config in enumerate(configs[1:], 1):
        peft.add_adapter(f"a{i}", config)
    g = torch.Generator().manual_seed(len(name))
    adapters = []
    for i in range(len(configs)):
        tensors = {}
        for key, p in peft.named_parameters():
            if f".a{i}" not in key or "base_layer" in key:
                continue
            spread = 0.3 if kind == "lora" else 0.6
            if "magnitude" in key:
                p.data = p.data * (1 + 0.5 * torch.rand(p.shape, generator=g))
            else:
                p.data = torch.randn(p.shape, generator=g) * spread
            stored = key.replace("base_model.model.", "unet.down_blocks.0.").replace(f".a{i}", "")
            tensors[rename(stored)] = p.data.clone()
        adapters.append((tensors, metadata))
    for module in peft.modules():
        if hasattr(module, "set_scale"):
            for i, scale in enumerate(scales):
                module.set_scale(f"a{i}", scale)
    merged = peft.merge_and_unload(adapter_names=[f"a{i}" for i in range(len(configs))])
    save(name, base, adapters, weights(merged), scales)


def lora(r=4, alpha=None, **options):
    return LoraConfig(r=r, lora_alpha=alpha or r, target_modules=["linear", "conv"], init_lora_weights=False, **options)


def saved_by_diffusers(**settings):
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in settings.items()})}


peft_case("lora-alpha", [lora(alpha=6)], [0.7], "lora", saved_by_diffusers(r=4, lora_alpha=6))
peft_case("lora-patterns", [lora(alpha=6, alpha_pattern={"conv": 2})], [1.0], "lora",
          saved_by_diffusers(r=4, lora_alpha=6, alpha_pattern={"conv": 2}))
peft_case("rslora", [lora(alpha=3, use_rslora=True)], [0.5], "lora", saved_by_diffusers(r=4, lora_alpha=3, use_rslora=True))
peft_case("two-loras", [lora(), lora(r=2)], [0.7, -0.4], "lora")
peft_case("dora", [lora(use_dora=True)], [1.0], "lora")
peft_case("dora-half", [lora(use_dora=True)], [0.5], "lora")
peft_case("two-doras", [lora(use_dora=True), lora(r=3, use_dora=True)], [1.0, 0.6], "lora")
targets = {"target_modules": ["linear", "conv"], "init_weights": False}
peft_case("loha", [LoHaConfig(r=3, alpha=2, **targets)], [0.8], "loha", saved_by_diffusers(lora_alpha=2))
peft_case("loha-conv", [LoHaConfig(r=3, alpha=3, use_effective_conv2d=True, **targets)], [1.0], "loha")
peft_case("lokr", [LoKrConfig(r=2, alpha=1, **targets)], [0.8], "lokr", saved_by_diffusers(lora_alpha=1))
peft_case("lokr-conv", [LoKrConfig(r=2, alpha=2, use_effective_conv2d=True, decompose_both=True, **targets)], [1.0], "lokr")

# LyCORIS's names and what PEFT has not.
g = torch.Generator().manual_seed(11)
draw = lambda *shape: torch.randn(shape, generator=g) * 0.4
base = weights(Layers())
name = lambda module, part: f"lora_unet_down_blocks_0_{module}.{part}"

up, mid, down, alpha = draw(12, 3, 1, 1), draw(3, 3, 3, 3), draw(3, 10, 1, 1), 1.5
change = torch.einsum("oa,abkl,bi->oikl", up[..., 0, 0], mid, down[..., 0, 0]) * alpha / 3
tensors = {name("conv", "lora_up.weight"): up, name("conv", "lora_mid.weight"): mid, name("conv", "lora_down.weight"): down,
           name("conv", "alpha"): torch.tensor(alpha)}
save("locon-mid", base, [(tensors, None)], {**base, "conv": base["conv"] + 0.6 * change}, [0.6])

up, down, scale = draw(12, 4), draw(4, 10), draw(1, 10).abs() + 1
whole = base["linear"] + 0.5 * (2 / 4) * up @ down
tensors = {name("linear", "lora_up.weight"): up, name("linear", "lora_down.weight"): down,
           name("linear", "alpha"): torch.tensor(2), name("linear", "dora_scale"): scale,
           name("conv", "diff"): draw(12, 10, 3, 3)}
merged = {"linear": whole * scale / whole.norm(dim=0, keepdim=True), "conv": base["conv"] + 0.5 * tensors[name("conv", "diff")]}
save("dora-columns", base, [(tensors, None)], merged, [0.5])

up, down, scale = draw(12, 4, 1, 1), draw(4, 10, 3, 3), draw(12, 1, 1, 1).abs() + 1
whole = base["conv"] + (up.flatten(1) @ down.flatten(1)).reshape(12, 10, 3, 3)
tensors = {name("conv", "lora_up.weight"): up, name("conv", "lora_down.weight"): down, name("conv", "dora_scale"): scale}
merged = {**base, "conv": whole * scale / whole.flatten(1).norm(dim=1).reshape(12, 1, 1, 1)}
save("dora-rows", base, [(tensors, None)], merged, [1.0])

w1, w2 = draw(3, 2), draw(4, 5, 3, 3)
tensors = {name("conv", "lokr_w1"): w1, name("conv", "lokr_w2"): w2, name("conv", "alpha"): torch.tensor(8.0)}
change = torch.kron(w1.reshape(3, 2, 1, 1), w2)
save("lokr-whole", base, [(tensors, None)], {**base, "conv": base["conv"] + change}, [1.0])
