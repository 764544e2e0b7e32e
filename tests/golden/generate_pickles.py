"""Adapters of these folders once more, in the files that PyTorch writes.

    python generate_pickles.py      # beside adapters/ and models/embedding/

torch 2.15.0.

embedding/thing.pt        a textual inversion as A1111's web UI saves it
embedding/thing.ldm.pt    as the code of the paper does, with a torch.nn.ParameterDict
embedding/thing.bin       as diffusers does
adapters/*/lora.0.pt      a LoRA, a LoCon with a number for alpha
adapters/*/lora.0.old.pt  one of them as before PyTorch 1.6
"""
import os

import torch
from safetensors.torch import load_file

HERE = os.path.dirname(os.path.abspath(__file__))
WORD = f"{HERE}/models/embedding/thing"

[(token, vectors)] = load_file(f"{WORD}.safetensors").items()
about = {"name": "thing", "step": 2000, "sd_checkpoint": None, "sd_checkpoint_name": None}
tokens = {"*": 265}
torch.save({"string_to_token": tokens, "string_to_param": {"*": vectors.clone().requires_grad_()}, **about}, f"{WORD}.pt")
parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors.clone())})
torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, f"{WORD}.ldm.pt")
torch.save({token: vectors.clone()}, f"{WORD}.bin")

for name in ("locon-mid", "lokr-whole"):
    torch.save({k: v.clone() for k, v in load_file(f"{HERE}/adapters/{name}/lora.0.safetensors").items()},
               f"{HERE}/adapters/{name}/lora.0.pt")

torch.save(load_file(f"{HERE}/adapters/lokr-whole/lora.0.safetensors"), f"{HERE}/adapters/lokr-whole/lora.0.old.pt",
           _use_new_zipfile_serialization=False)
