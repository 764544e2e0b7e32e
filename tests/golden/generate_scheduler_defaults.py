"""The defaults of every scheduler's class, and the eta that pipelines give it.

    pip install torch==2.15.0 diffusers==0.42.1 torchsde scipy
    python generate_scheduler_defaults.py

writes scheduler_defaults.json beside this file: for each class the fields of its constructor with their defaults, infinities as the strings
that its own files have for them, and "eta", the default of StableDiffusionPipeline, where its step takes one.
"""
import ast
import inspect
import json
import math
import os

import diffusers

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(os.path.dirname(diffusers.__file__), "schedulers")
NAMES = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
         "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
         "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "UniPCMultistepScheduler",
         "DEISMultistepScheduler", "LCMScheduler", "TCDScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"]
ETA = inspect.signature(diffusers.StableDiffusionPipeline.__call__).parameters["eta"].default


def defaults(arguments):
    """Names with defaults, from the source, so that no class needs what its steps do."""
    named = dict(zip([a.arg for a in arguments.args][::-1], arguments.defaults[::-1]))
    return {name: eval(ast.unparse(value), {"float": float}) for name, value in reversed(named.items())}


def method(name, what):
    for file in sorted(os.listdir(FOLDER)):
        if file.startswith("scheduling_") and file.endswith(".py") and "flax" not in file:
            for node in ast.parse(open(os.path.join(FOLDER, file)).read()).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return next(f.args for f in node.body if isinstance(f, ast.FunctionDef) and f.name == what)
    raise SystemExit(f"there is no {name}")


def written(value):
    return str(value) if isinstance(value, float) and math.isinf(value) else value


classes = {}
for name in NAMES:
    fields = {field: written(value) for field, value in defaults(method(name, "__init__")).items()}
    if "eta" in defaults(method(name, "step")):
        fields["eta"] = ETA
    classes[name] = fields
with open(os.path.join(HERE, "scheduler_defaults.json"), "w") as file:
    json.dump({"diffusers": diffusers.__version__, "classes": classes}, file, indent=1)
    file.write("\n")
