"""What the code of ControlNet's authors calls the tensors of models/controlnet: pairs of its name and diffusers' name.

    python generate_control_names.py      # beside models/controlnet; writes models/controlnet/original_names.json

diffusers 0.42.1, which converts a file with these names back to the tensors that went in, and loads it as one file.
"""
import json
import os
import re
import tempfile

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import load_file, save_file

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models/controlnet")
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def original(name, layers, convolutions):
    block = lambda i, j: int(i) * (layers + 1) + int(j) + 1
    resnet = lambda at, part: at + "." + next(part.replace(a, b, 1) for a, b in RESNET.items() if part.startswith(a + "."))
    rules = [
        (r"conv_in\.(.*)", lambda m: f"input_blocks.0.0.{m[1]}"),
        (r"time_embedding\.linear_([12])\.(.*)", lambda m: f"time_embed.{2 * int(m[1]) - 2}.{m[2]}"),
        (r"down_blocks\.(\d)\.resnets\.(\d)\.(.*)", lambda m: resnet(f"input_blocks.{block(m[1], m[2])}.0", m[3])),
        (r"down_blocks\.(\d)\.attentions\.(\d)\.(.*)", lambda m: f"input_blocks.{block(m[1], m[2])}.1.{m[3]}"),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", lambda m: f"input_blocks.{block(m[1], layers)}.0.op.{m[2]}"),
        (r"mid_block\.resnets\.(\d)\.(.*)", lambda m: resnet(f"middle_block.{2 * int(m[1])}", m[2])),
        (r"mid_block\.attentions\.0\.(.*)", lambda m: f"middle_block.1.{m[1]}"),
        (r"controlnet_down_blocks\.(\d+)\.(.*)", lambda m: f"zero_convs.{m[1]}.0.{m[2]}"),
        (r"controlnet_mid_block\.(.*)", lambda m: f"middle_block_out.0.{m[1]}"),
        (r"controlnet_cond_embedding\.conv_in\.(.*)", lambda m: f"input_hint_block.0.{m[1]}"),
        (r"controlnet_cond_embedding\.blocks\.(\d)\.(.*)", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}.{m[2]}"),
        (r"controlnet_cond_embedding\.conv_out\.(.*)", lambda m: f"input_hint_block.{2 * convolutions - 2}.{m[1]}"),
    ]
    return next(rule(m) for pattern, rule in rules if (m := re.fullmatch(pattern, name)))


config = json.load(open(f"{FOLDER}/config.json"))
tensors = load_file(f"{FOLDER}/diffusion_pytorch_model.safetensors")
convolutions = 2 * len(config["conditioning_embedding_out_channels"])
pairs = {original(name, config["layers_per_block"], convolutions): name for name in tensors}
assert len(pairs) == len(tensors)
renamed = {old: tensors[name].clone() for old, name in pairs.items()}
back = {k: v for k, v in convert_controlnet_checkpoint(dict(renamed), config).items() if v is not None}
assert back.keys() == tensors.keys() and all(torch.equal(back[k], tensors[k]) for k in tensors)
with tempfile.TemporaryDirectory() as folder:
    save_file(renamed, f"{folder}/control.safetensors")
    model = ControlNetModel.from_single_file(f"{folder}/control.safetensors", config=FOLDER, local_files_only=True)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())
with open(f"{FOLDER}/original_names.json", "w") as f:
    json.dump(pairs, f, indent=0)
    f.write("\n")
print(len(pairs), "tensors")
