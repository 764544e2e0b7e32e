"""Inpainting and image to image on every solver, at other strengths and sizes."""
import cases_public as P
from cases_public import S
SD15, INP = P.MODELS["sd15"], P.MODELS["inpaint9"]
MODELS = {"sd15": SD15, "inpaint9": INP, "sd21": P.MODELS["sd21"]}
CASES = []
def case(name, kind, model, prompt, seed, **k):
    d = dict(name=name, kind=kind, model=model, prompt=prompt, seed=seed, steps=8, guidance_scale=7.5, width=64, height=64)
    d.update(k)
    CASES.append(d)
I = dict(init_image_spec=[64, 64, 1], mask_image_spec=[64, 64, 1])
SOLVERS = [("ddim", S("DDIMScheduler")), ("ddpm", S("DDPMScheduler")), ("lms", S("LMSDiscreteScheduler")),
        ("euler", S("EulerDiscreteScheduler")), ("euler-a", S("EulerAncestralDiscreteScheduler")),
        ("heun", S("HeunDiscreteScheduler")), ("dpmpp-2m", S("DPMSolverMultistepScheduler")),
        ("dpmpp-2m-sde-karras", S("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)),
        ("dpmpp-2m-sde", S("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")),
        ("dpmpp-singlestep", S("DPMSolverSinglestepScheduler")), ("unipc", S("UniPCMultistepScheduler")),
        ("deis", S("DEISMultistepScheduler")), ("lcm", S("LCMScheduler")), ("pndm", None),
        ("dpm2", S("KDPM2DiscreteScheduler")), ("dpm2-a", S("KDPM2AncestralDiscreteScheduler"))]
seed = 1000
for n, s in SOLVERS:
    for kind, model, st in [("inpaint", "sd15", 0.7), ("inpaint", "sd15", 1.0), ("inpaint", "inpaint9", 0.7), ("img2img", "sd15", 0.45)]:
        seed += 1
        k = dict(I)
        if kind == "img2img": k.pop("mask_image_spec")
        if n == "lcm": k["guidance_scale"] = 1.5
        case(f"{kind}-{model}-{n}-{st}", kind, model, "a dog on a bench", seed, strength=st, **k, **({"scheduler": s} if s else {}))
case("inpaint4-resize-soft", "inpaint", "sd15", "a boat", 1901, strength=0.9, scheduler=S("DDIMScheduler"), width=80, height=56,
     init_image_spec=[123, 77, 4], mask_image_spec=[200, 50, 4, 1])
case("inpaint9-eta", "inpaint", "inpaint9", "a boat", 1902, strength=0.9, eta=0.7, scheduler=S("DDIMScheduler"), **I)
case("inpaint4-noguidance", "inpaint", "sd15", "a boat", 1903, strength=1.0, guidance_scale=1.0, scheduler=S("DDIMScheduler"), **I)
case("inpaint4-sd21", "inpaint", "sd21", "a boat", 1904, strength=0.6, clip_skip=1, width=48, height=32, scheduler=S("EulerAncestralDiscreteScheduler"),
     init_image_spec=[48, 32, 1], mask_image_spec=[48, 32, 1])
case("img2img-sd21", "img2img", "sd21", "a boat", 1905, strength=0.6, width=48, height=32, init_image_spec=[48, 32, 1], scheduler=S("DPMSolverMultistepScheduler", use_karras_sigmas=True))
case("img2img-seven", "img2img", "sd15", "a boat", 1906, steps=7, strength=0.71, eta=1.0, init_image_spec=[64, 64, 2], scheduler=S("DDIMScheduler"))
case("img2img-trailing", "img2img", "sd15", "a boat", 1907, steps=6, strength=0.5, init_image_spec=[64, 64, 2], scheduler=S("DDIMScheduler", timestep_spacing="trailing"))
case("inpaint4-karras", "inpaint", "sd15", "a boat", 1908, strength=0.5, scheduler=S("EulerDiscreteScheduler", use_karras_sigmas=True), **I)
