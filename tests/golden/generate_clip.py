"""A small random CLIP model, what transformers' encoders make of pictures and texts, and the scores.

    python generate_clip.py                # into clip/

transformers 5.23.0, torch 2.15.0, Pillow 13.0.0, numpy, safetensors. The pictures are those of pictures/resize, prepared here as
CLIPImageProcessor describes it, with Pillow's own resampling; the tokenizer is that of models/sd15.
"""
import json
import os
import shutil

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = f"{HERE}/clip"
SIDE = 30
TEXTS = ["a fox", "an owl on a branch", "a lighthouse in a storm"]
PICTURES = ["rgb.png", "rgb.17x41.png", "rgb.122x80.png"]
MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

tokenizer = CLIPTokenizer.from_pretrained(f"{HERE}/models/sd15/tokenizer")
torch.manual_seed(4)
text = {
    "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 77, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
}
# A side that is no multiple of the patch: a column and a row are left out.
vision = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": SIDE, "patch_size": 7,
}
model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "class_embedding" in name:
            parameter.normal_(0, 0.15)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
os.makedirs(FOLDER, exist_ok=True)
model.save_pretrained(f"{FOLDER}/model")
for name in ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"]:
    if os.path.exists(f"{HERE}/models/sd15/tokenizer/{name}"):
        shutil.copy(f"{HERE}/models/sd15/tokenizer/{name}", f"{FOLDER}/model/{name}")


def prepared(name):
    picture = Image.open(f"{HERE}/pictures/resize/{name}").convert("RGB")
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    size = (SIDE, SIDE * long // short) if width <= height else (SIDE * long // short, SIDE)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    picture = picture.crop((left, top, left + SIDE, top + SIDE))
    values = (np.asarray(picture).astype(np.float64) / 255 - MEAN) / DEVIATION
    return torch.tensor(values.astype(np.float32)).permute(2, 0, 1)


pictures = torch.stack([prepared(name) for name in PICTURES])
ids = tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
with torch.inference_mode():
    of_pictures = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
    of_texts = model.text_projection(model.text_model(input_ids=ids).pooler_output)
unit = lambda x: x / x.norm(dim=-1, keepdim=True)
scores = (100 * (unit(of_pictures) * unit(of_texts)).sum(-1)).clamp(min=0)
tensors = {"prepared": pictures, "pictures": unit(of_pictures), "texts": unit(of_texts)}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{FOLDER}/stages.safetensors")
with open(f"{FOLDER}/case.json", "w") as file:
    json.dump({"pictures": PICTURES, "texts": TEXTS, "scores": scores.tolist()}, file, indent=1)
    file.write("\n")
print(scores, [p.shape for p in tensors.values()])
