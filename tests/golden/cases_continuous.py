"""Networks that are told the level of noise as a number between whole timesteps, below 0 where there is little noise; the model is that of
cases_public."""
import cases_public as P
from cases_public import S

MODELS = {"sd15": P.MODELS["sd15"]}
LORA, EMBEDDING = P.LORA, P.EMBEDDING
T = dict(kind="txt2img", model="sd15", prompt="a fox", steps=6, guidance_scale=7.5, width=64, height=64)
CASES = [
    dict(T, name="sd15-edm", seed=2011, scheduler=S("EDMEulerScheduler")),
    dict(T, name="sd15-euler-continuous", seed=2012,
         scheduler=S("EulerDiscreteScheduler", timestep_type="continuous", prediction_type="v_prediction")),
]
SCHEDULERS, SINGLE_FILE, RNG, PROMPTS, TRAIN = [], [], P.RNG, P.PROMPTS, P.TRAIN
