"""Options of UNet2DModel that the models of `generate.py` leave out, on networks of a few thousand weights.

    python generate_unet2d.py              # writes unet2d/ beside this file

Same versions as generate.py. One safetensors file per variant: the weights under their own names, `in.*` and `out`; the
configuration, as diffusers saves it, is in the file's metadata.
"""
import json
import os

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = dict(sample_size=8, in_channels=2, out_channels=2, block_out_channels=(4, 8), layers_per_block=1,
             norm_num_groups=2, attention_head_dim=4, down_block_types=("AttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "AttnUpBlock2D"))
VARIANTS = {
    "scale_shift": dict(resnet_time_scale_shift="scale_shift"),
    "scale_shift_norm": dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4, time_embedding_dim=12),
    "fourier": dict(time_embedding_type="fourier", freq_shift=1, flip_sin_to_cos=False),
    "class_timestep": dict(class_embed_type="timestep", center_input_sample=True),
    "class_identity": dict(class_embed_type="identity", mid_block_scale_factor=1.5),
    "no_middle": dict(mid_block_type=None, num_class_embeds=3, layers_per_block=2, out_channels=4),
    "plain_middle": dict(add_attention=False, downsample_padding=0, attention_head_dim=None, norm_eps=1e-6),
    "three_levels": dict(block_out_channels=(4, 8, 12), down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                         up_block_types=("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"), sample_size=(8, 12)),
}

for seed, (name, changes) in enumerate(VARIANTS.items()):
    torch.manual_seed(seed)
    model = UNet2DModel(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # No zero biases, no unit norms; the frequencies of a Fourier embedding stay.
            if key != "time_proj.weight" and weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
        size = model.config.sample_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        tensors = {"in.x": torch.randn(2, 2, height, width), "in.timesteps": torch.tensor([3.0, 480.0])}
        labels = None
        if name == "class_timestep":
            labels = torch.tensor([5.0, 700.0])
        elif name == "class_identity":
            labels = torch.randn(2, 4 * model.config.block_out_channels[0])
        elif model.config.num_class_embeds is not None:
            labels = torch.tensor([2, 0])
        if labels is not None:
            tensors["in.class_labels"] = labels
        tensors["out"] = model(tensors["in.x"], tensors["in.timesteps"], labels).sample
    tensors.update({key: value.detach().clone() for key, value in model.state_dict().items()})
    os.makedirs(f"{HERE}/unet2d", exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, f"{HERE}/unet2d/{name}.safetensors",
              metadata={"config": json.dumps(dict(model.config))})
