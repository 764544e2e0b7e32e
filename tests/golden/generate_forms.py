"""Cases of Stable Diffusion XL and of distilled models that `generate.py` does not make.

    python generate_forms.py --merges tokenizer/full/merges.txt.gz        # beside models/ and cases/

Same versions as generate.py, whose functions it uses. The models are smaller than those of cases_public.
"""
import argparse
import json
import os
import shutil
import types

import generate as G
from cases_public import CA, CU, D, S, SD_BETAS, SDXL_EULER, U, text, unet, vae
from diffusers import StableDiffusionXLInpaintPipeline

HERE = os.path.dirname(os.path.abspath(__file__))
LCM = dict(_class_name="LCMScheduler", _diffusers_version="0.22.0.dev0", **SD_BETAS, clip_sample=False, clip_sample_range=1.0,
           original_inference_steps=50, prediction_type="epsilon", rescale_betas_zero_snr=False, sample_max_value=1.0,
           set_alpha_to_one=True, steps_offset=0, thresholding=False, timestep_scaling=10.0, timestep_spacing="leading",
           trained_betas=None)
DDIM = dict(_class_name="DDIMScheduler", _diffusers_version="0.42.1", **SD_BETAS, clip_sample=False, prediction_type="v_prediction",
            set_alpha_to_one=False, steps_offset=1)


def xl_unet(cross, numbers, pooled, **more):
    return unet([D, CA], [CU, U], [8, 16], [1, 2], cross, 4, 8, use_linear_projection=True, transformer_layers_per_block=[1, 1],
                addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=numbers * 8 + pooled, **more)


TEXT = dict(seed=203, config=text(16, 2, 2))
TEXT_2 = dict(seed=204, config=text(24, 2, 2, "gelu", projection_dim=24))
VAE = dict(seed=202, config=vae([4, 4, 8], 4, 32, 0.13025))
SMALL = dict(merges=100, pad="<|endoftext|>", pad_2="!", scheduler=SDXL_EULER, text=TEXT, text_2=TEXT_2, vae=VAE)
MODELS = {
    "xl-small": dict(SMALL, pipeline="StableDiffusionXLPipeline", unet=dict(seed=201, std=0.5, qk=1.2, config=xl_unet(40, 6, 24))),
    "xl-refiner": dict(SMALL, pipeline="StableDiffusionXLPipeline", force_zeros=False,
                       unet=dict(seed=206, std=0.5, qk=1.2, config=xl_unet(24, 5, 24))),
    "lcm": dict(SMALL, pipeline="StableDiffusionPipeline", scheduler=LCM,
                unet=dict(seed=207, std=0.5, qk=1.2, config=unet([CA, D], [U, CU], [8, 8], 2, 16, 4, 8, time_cond_proj_dim=12))),
    "text-in-time": dict(SMALL, pipeline="StableDiffusionPipeline", scheduler=DDIM,
                         unet=dict(seed=208, std=0.5, qk=1.2, config=unet(
                             [CA, D], [U, CU], [8, 16], 1, 16, 4, 8, addition_embed_type="text", addition_embed_type_num_heads=2,
                             resnet_time_scale_shift="scale_shift"))),
}


def case(name, kind, model, prompt, seed, steps=4, guidance_scale=6.0, **more):
    return dict(name=name, kind=kind, model=model, prompt=prompt, seed=seed, steps=steps, guidance_scale=guidance_scale,
                width=32, height=32, **more)


I = dict(init_image_spec=[32, 32, 3])
M = dict(mask_image_spec=[32, 32, 3])
CASES = [
    case("xl-negative-sizes", "txt2img-xl", "xl-small", "a cat", 301, negative_prompt="a dog", prompt_2="fur",
         original_size=[64, 48], target_size=[40, 40], crops_coords_top_left=[4, 8], negative_original_size=[16, 24],
         negative_target_size=[24, 16], negative_crops_coords_top_left=[2, 6]),
    case("xl-clip-skip", "txt2img-xl", "xl-small", "a cat", 302, steps=3, clip_skip=1),
    case("xl-empty-negative", "txt2img-xl", "xl-small", "a cat", 303, steps=3, negative_prompt=""),
    case("xl-img2img-negative-sizes", "img2img-xl", "xl-small", "a cat", 305, strength=0.6, crops_coords_top_left=[4, 8],
         negative_original_size=[16, 24], negative_crops_coords_top_left=[2, 6], **I),
    case("xl-inpaint-0.6", "inpaint-xl", "xl-small", "a cat", 307, strength=0.6, negative_prompt="a dog", **I, **M),
    case("xl-refiner", "img2img-xl", "xl-refiner", "a cat", 308, strength=0.4, negative_prompt="a dog", original_size=[64, 48],
         crops_coords_top_left=[4, 8], **I),
    case("xl-refiner-no-negative", "img2img-xl", "xl-refiner", "a cat", 304, steps=3, strength=0.7, **I),
    case("xl-turbo-1", "txt2img-xl", "xl-small", "a cat", 309, steps=1, guidance_scale=0.0,
         scheduler=S("EulerAncestralDiscreteScheduler", timestep_spacing="trailing")),
    case("xl-turbo-4", "txt2img-xl", "xl-small", "a cat", 310, steps=4, guidance_scale=0.0,
         scheduler=S("EulerAncestralDiscreteScheduler", timestep_spacing="trailing")),
    case("lcm-1", "txt2img", "lcm", "a cat", 311, steps=1, guidance_scale=8.5),
    case("lcm-4", "txt2img", "lcm", "a cat", 312, steps=4, guidance_scale=8.5),
    case("lcm-8-weak", "txt2img", "lcm", "a cat", 313, steps=8, guidance_scale=1.0),
    case("lcm-img2img", "img2img", "lcm", "a cat", 314, steps=4, guidance_scale=7.5, strength=0.5, **I),
    case("text-in-time", "txt2img", "text-in-time", "a cat", 315, negative_prompt="a dog"),
]

G.PIPES["inpaint-xl"] = StableDiffusionXLInpaintPipeline
plain_call_args, plain_run_pipe = G.call_args, G.run_pipe


def call_args(out, folder, case):
    kind = case["kind"].removesuffix("-xl") if case["kind"] == "inpaint-xl" else case["kind"]
    return plain_call_args(out, folder, dict(case, kind=kind))


class WithFirstEncoder:
    """A refiner's pipeline, whose first text encoder is None, with something that the recorder can wrap."""

    def __init__(self, pipe):
        self.pipe, self.text_encoder = pipe, types.SimpleNamespace(forward=None)

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, **kw):
        return self.pipe(**kw)


def run_pipe(pipe, kw, *more):
    return plain_run_pipe(pipe if pipe.text_encoder is not None else WithFirstEncoder(pipe), kw, *more)


G.call_args, G.run_pipe = call_args, run_pipe


def without_first_encoder(folder):
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(f"{folder}/{part}")
    index = json.load(open(f"{folder}/model_index.json"))
    index.update(_class_name="StableDiffusionXLImg2ImgPipeline", text_encoder=[None, None], tokenizer=[None, None],
                 requires_aesthetics_score=True)
    G.wjson(f"{folder}/model_index.json", index)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--merges", required=True)
    ap.add_argument("--out", default=HERE)
    ap.add_argument("--check64", action="store_true")
    a = ap.parse_args()
    merges = G.bpe_merges(a.merges)
    for name, spec in MODELS.items():
        G.build_model(a.out, name, spec, merges)
        if name == "xl-refiner":
            without_first_encoder(f"{a.out}/models/{name}")
    for c in CASES:
        print(c["name"], G.pipeline_case(a.out, dict(c), a), flush=True)


if __name__ == "__main__":
    main()
