"""Blocks and files of PyPI's `gguf` 0.19.0, for src/checkpoints/gguf: what blocks of each format hold, what its reference makes of
floats, and a file of a few tensors.

    pip install gguf==0.19.0 numpy safetensors
    python tests/golden/generate_gguf.py
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "gguf"
# The bytes of a block at which numbers in half precision stand.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0],
}


def blocks(kind, count, draw):
    values, size = gguf.GGML_QUANT_SIZES[kind]
    made = draw.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = draw.normal(0, 0.1, (count, 1)).astype(np.float16)
        made[:, at : at + 2] = scales.view(np.uint8)
    return made


def main():
    FOLDER.mkdir(exist_ok=True)
    draw = np.random.default_rng(1)
    tensors = {}
    for kind in HALVES:
        stored = blocks(kind, 5, draw)
        tensors[f"{kind.name}.blocks"] = stored
        tensors[f"{kind.name}.values"] = gguf.dequantize(stored, kind)
    floats = draw.normal(0, 0.5, (4, 64)).astype(np.float32)
    floats[1] = 0
    floats[2, :32] = np.linspace(-1, 1, 32)
    tensors["floats"] = floats
    for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
        tensors[f"{kind.name}.of_floats"] = gguf.quantize(floats, kind)
    save_file(tensors, FOLDER / "blocks.safetensors")

    writer = gguf.GGUFWriter(FOLDER / "tensors.gguf", "sd1")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_array("tokens", ["a", "fox", "on"])
    writer.add_float32("number", 1.5)
    writer.add_bool("truth", True)
    expected = {}
    for name, kind in [("rows.weight", T.Q8_0), ("thirds.weight", T.Q4_K), ("laid_out.weight", T.Q6_K)]:
        rows = {"rows.weight": 3, "thirds.weight": 6, "laid_out.weight": 9}[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = {"rows.weight": 2, "thirds.weight": 1, "laid_out.weight": 1}[name]
        stored = blocks(kind, rows * count, draw).reshape(rows, count * size)
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected[name] = gguf.dequantize(stored, kind)
    # As ComfyUI-GGUF lays out convolutions so that blocks fit.
    shape = (32, 8, 3, 3)
    writer.add_array("comfy.gguf.orig_shape.laid_out.weight", list(shape))
    expected["laid_out.weight"] = expected["laid_out.weight"].reshape(shape)
    for name, dtype in [("bias", np.float32), ("half.weight", np.float16)]:
        values = draw.normal(0, 1, (4, 3)).astype(dtype)
        writer.add_tensor(name, values)
        expected[name] = values.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, FOLDER / "tensors.safetensors")


main()
