"""Inpainting where a solver's details show; the models are those of cases_public."""
import cases_public as P
from cases_public import S

MODELS = {"sd15": P.MODELS["sd15"]}
LORA, EMBEDDING = P.LORA, P.EMBEDDING
I = dict(init_image_spec=[64, 64, 1], mask_image_spec=[64, 64, 1])
CASES = [
    dict(name="inpaint-sd15-dpm2-0.7", kind="inpaint", model="sd15", prompt="a dog on a bench", seed=1057, steps=8, guidance_scale=7.5,
         width=64, height=64, strength=0.7, scheduler=S("KDPM2DiscreteScheduler"), **I),
    dict(name="inpaint4-karras", kind="inpaint", model="sd15", prompt="a boat", seed=1908, steps=8, guidance_scale=7.5,
         width=64, height=64, strength=0.5, scheduler=S("EulerDiscreteScheduler", use_karras_sigmas=True), **I),
]
SCHEDULERS, SINGLE_FILE, RNG, PROMPTS, TRAIN = [], [], P.RNG, P.PROMPTS, P.TRAIN
