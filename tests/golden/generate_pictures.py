"""Picture files of many kinds, and what Pillow and diffusers make of them.

    python generate_pictures.py            # into pictures/

Pillow 13.0.0 (from this version on, `resize` starts with the columns where they shrink most), diffusers 0.42.1, torch 2.15.0.

files/NAME.EXT        a file to read; files/NAME.expected.png: its pixels, upright
resize/NAME.png       a source; resize/NAME.WxH.png: resized by Lanczos. grey16 is resized as floats, then rounded
mask/                 a soft mask; fitted.WxH.png: through VaeImageProcessor; latent.WxH.png: that, by torch's nearest
mask/blur.S.png       the mask through GaussianBlur(S)
luma.png              resize/rgb.png through convert("L")
levels.json           what VaeImageProcessor makes of each of 256 levels
"""
import json
import os

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageCms, ImageFilter, ImageOps

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pictures")
for folder in ["files", "resize", "mask"]:
    os.makedirs(f"{HERE}/{folder}", exist_ok=True)
rng = np.random.default_rng(4)


def scene(width, height):
    """Smooth colours, edges and noise, unlike any mirror image or rotation of itself."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    rgb = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 5 + y / 7)], -1)
    rgb[(x - width / 3) ** 2 + (y - height / 4) ** 2 < (height / 5) ** 2] = [250, 30, 20]
    rgb[y > 0.8 * height] += rng.normal(0, 60, rgb[y > 0.8 * height].shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def alpha(width, height):
    y, x = np.mgrid[0:height, 0:width].astype(float)
    a = 300 * np.hypot(x / width - 0.5, y / height - 0.4)
    a[(x > 0.6 * width) & (y > 0.5 * height)] = 0
    return Image.fromarray(a.clip(0, 255).astype(np.uint8))


def file(name, image, mode=None, **options):
    path = f"{HERE}/files/{name}"
    image.save(path, **options)
    read = ImageOps.exif_transpose(Image.open(path))
    read.convert(mode or read.mode).save(f"{HERE}/files/{name.split('.')[0]}.expected.png")


rgb = scene(40, 24)
rgba = rgb.copy()
rgba.putalpha(alpha(40, 24))
# Stored so that every one of them is upright the same.
stored = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_270}
for orientation, transpose in stored.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = rgb if transpose is None else rgb.transpose(transpose)
    file(f"orientation{orientation}.jpg", image, exif=exif, quality=95, subsampling=0)
    if orientation in (6, 7):
        file(f"png_orientation{orientation}.png", image, exif=exif)
        file(f"webp_orientation{orientation}.webp", image, exif=exif, lossless=True)
file("progressive.jpg", rgb, progressive=True, quality=90)
file("grey_jpeg.jpg", rgb.convert("L"), quality=90)
file("cmyk.jpg", rgb.convert("CMYK"), mode="RGB", quality=95)
file("profile.jpg", rgb, quality=95, subsampling=0, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
file("lossy.webp", rgb, quality=90)
file("lossless_alpha.webp", rgba, lossless=True, exact=True)
file("palette.png", rgb.quantize(32), mode="RGB")
file("palette_alpha.png", rgba.quantize(32), mode="RGBA")
file("one_bit.png", rgb.convert("1"), mode="L")
file("grey.png", rgb.convert("L"))
file("grey_alpha.png", rgba.convert("LA"))
file("rgba.png", rgba)
file("grey16.png", Image.fromarray((np.asarray(rgb)[..., 2].astype(np.uint16) * 257 + rng.integers(-99, 99, (24, 40))).clip(0, 65535).astype(np.uint16)))
other = ImageOps.invert(rgb)
rgb.save(f"{HERE}/files/animated.png", save_all=True, append_images=[other], duration=100)
rgb.save(f"{HERE}/files/animated.webp", save_all=True, append_images=[other], duration=100, lossless=True)
rgb.save(f"{HERE}/files/animated.expected.png")

source = scene(61, 40)
with_alpha = source.copy()
with_alpha.putalpha(alpha(61, 40))
sizes = [(17, 41), (122, 80), (61, 20), (30, 40), (1, 1), (1, 30), (100, 7), (64, 64), (60, 37), (62, 39), (8, 100), (55, 27), (55, 28)]
for name, image in {"grey": source.convert("L"), "grey_alpha": with_alpha.convert("LA"), "rgb": source, "rgba": with_alpha,
                    "row": source.crop((3, 5, 32, 6)), "column": source.crop((30, 2, 31, 33))}.items():
    image.save(f"{HERE}/resize/{name}.png")
    for width, height in sizes:
        image.resize((width, height), Image.Resampling.LANCZOS).save(f"{HERE}/resize/{name}.{width}x{height}.png")
deep = (np.asarray(source)[..., 1].astype(np.uint16) * 257 ^ rng.integers(0, 256, (40, 61))).astype(np.uint16)
Image.fromarray(deep).save(f"{HERE}/resize/grey16.png")
for width, height in sizes[:4] + [(60, 37)]:
    floats = np.asarray(Image.fromarray(deep.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS))
    rounded = np.floor(floats.astype(np.float32) + np.float32(0.5)).clip(0, 65535).astype(np.uint16)
    Image.fromarray(rounded).save(f"{HERE}/resize/grey16.{width}x{height}.png")
source.convert("L").save(f"{HERE}/luma.png")

y, x = np.mgrid[0:60, 0:90].astype(float)
soft = 255 / (1 + np.exp((np.hypot(x - 50, y - 24) - 17) / 2.5))
soft[50:52, 10:80] = 255  # thin
soft[40:55, 12] = 140
soft[5, 5] = 255
mask = Image.fromarray(soft.round().astype(np.uint8))
mask.save(f"{HERE}/mask/mask.png")
processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
for width, height in [(96, 64), (48, 80), (40, 24)]:
    fitted = processor.preprocess(mask, height=height, width=width)
    Image.fromarray((fitted[0, 0].numpy() * 255).astype(np.uint8)).save(f"{HERE}/mask/fitted.{width}x{height}.png")
    for size in [(height // 8, width // 8), (height // 3 + 1, width // 5)]:
        latent = torch.nn.functional.interpolate(fitted, size=size)
        levels = (latent[0, 0].numpy() * 255).astype(np.uint8)
        Image.fromarray(levels).save(f"{HERE}/mask/latent.{width}x{height}.{size[1]}x{size[0]}.png")
for sigma in ["0", "0.6", "1", "4", "8.5", "33", "200"]:
    mask.filter(ImageFilter.GaussianBlur(float(sigma))).save(f"{HERE}/mask/blur.{sigma}.png")

levels = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
tensor = VaeImageProcessor(vae_scale_factor=8).preprocess(levels)
json.dump([float(v) for v in tensor[0, 0].flatten()], open(f"{HERE}/levels.json", "w"))
