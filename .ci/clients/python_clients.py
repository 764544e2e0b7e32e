"""The clients of Python with a server of the embedded model: openai and webuiapi. Usage: python_clients.py URL"""
import base64
import io
import sys

import webuiapi
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

url = sys.argv[1]
host, port = url.removeprefix("http://").split(":")


def picture(data):
    return Image.open(io.BytesIO(base64.b64decode(data.b64_json))).convert("RGB")


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    return file


client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
print("models", [model.id for model in client.models.list()])
own = {"seed": 7, "steps": 8}
answer = client.images.generate(model="emoji-ldm", prompt="a fox on a blue background", n=2, size="128x128", extra_body=own)
first, second = (picture(data) for data in answer.data)
assert first.size == (128, 128) and first.tobytes() != second.tobytes()
again = client.images.generate(model="emoji-ldm", prompt="a fox on a blue background", extra_body=own)
assert picture(again.data[0]).tobytes() == first.tobytes()
print("generate", len(answer.data), answer.size)

mask = Image.new("RGBA", first.size, (0, 0, 0, 255))
mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
edited = client.images.edit(
    image=("fox.png", png(first)), mask=("mask.png", png(mask)), prompt="a frog on a blue background", extra_body={"steps": 8})
right = (64, 0, 128, 128)
assert picture(edited.data[0]).crop(right).tobytes() == first.crop(right).tobytes()
assert picture(edited.data[0]).tobytes() != first.tobytes()
print("edit")

kinds = [event.type for event in client.images.generate(
    model="emoji-ldm", prompt="a cat", stream=True, partial_images=2, extra_body={"steps": 300})]
assert kinds[-1] == "image_generation.completed" and len(kinds) <= 3, kinds
print("stream", kinds)

for wrong, error in [({"prompt": "a", "n": 50}, BadRequestError), ({"prompt": "a", "model": "none"}, NotFoundError)]:
    try:
        client.images.generate(**wrong)
        raise SystemExit(f"{wrong} was taken")
    except error as refused:
        print("refused", refused.body["param"])

api = webuiapi.WebUIApi(host=host, port=int(port))
result = api.txt2img(prompt="a fox on a blue background", seed=7, steps=8, width=128, height=128, sampler_name="DDIM", cfg_scale=6)
print("webuiapi txt2img", result.image.size, result.info["seed"], api.get_options()["sd_model_checkpoint"])
result = api.img2img(images=[first], prompt="a frog", seed=3, steps=8, width=128, height=128, denoising_strength=0.6)
assert result.image.size == (128, 128)
inpaint = Image.new("L", first.size, 0)
inpaint.paste(255, (0, 0, 64, 128))
result = api.img2img(images=[first], prompt="a frog", seed=3, steps=8, width=128, height=128, mask_image=inpaint, mask_blur=0,
                     inpainting_fill=1, inpaint_full_res=False, denoising_strength=1.0)
assert result.image.convert("RGB").crop(right).tobytes() == first.crop(right).tobytes()
print("webuiapi img2img, inpaint; samplers", len(api.get_samplers()), "models", [m["model_name"] for m in api.get_sd_models()])
print("progress", api.get_progress()["progress"], "png-info", api.png_info(result.image).info[:20] or "-")
api.interrupt()
