"""Inception-v3 in both of its forms, layer by layer, and FID, KID and the inception score of pictures by the one that FID has.

    pip install pytorch-fid==0.3.0 torch-fidelity==0.4.0 torchvision scipy pillow
    python generate_inception.py           # writes inception/*.json beside this file

pytorch-fid 0.3.0, torch-fidelity 0.4.0, torchvision 0.29.2, torch 2.15.0, Pillow 13.0.0, scipy and numpy. Neither weights nor pictures
are stored: both follow from rules in whole numbers, which the tests have too (cases/inception.rs).
"""
import json
import os
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from pytorch_fid import fid_score, inception
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = f"{HERE}/inception"
# Places of a tensor that are stored.
PROBES = 16
COUNT, WIDTH, HEIGHT = 12, 48, 40


def uniform(name, count):
    """SplitMix64 from the FNV-1a hash of a name: from -1 to 1, exact in float32."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(2**23)) - np.float32(1)


def weight(name, shape):
    values = torch.from_numpy(uniform(name, int(np.prod(shape)))).reshape(shape)
    if name == "fc.weight":
        return values * 2
    if len(shape) == 4:
        return values * np.float32(np.sqrt(6 / np.prod(shape[1:])))
    if name.endswith("bn.weight") or name.endswith("running_var"):
        return values * 0.25 + 1
    return values * 0.25


def weights(state):
    return {name: weight(name, tuple(value.shape)) if value.dim() > 0 else value for name, value in state.items()}


def picture(which, i):
    """[HEIGHT, WIDTH, 3] bytes: dark stripes, or bright squares."""
    y, x, c = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), np.arange(3), indexing="ij")
    if which == 0:
        value = ((x * (i + 1) + y * (2 * i + 3)) * (c + 2) + 37 * i) % 128
    else:
        value = ((x // (i % 5 + 2) * 53 + y // (i % 3 + 3) * 71) * (c + 1) + x * y * (i % 4) + 11 * i) % 256
    return value.astype(np.uint8)


def batch():
    """The first picture of each set as pytorch-fid reads them: [2, 3, HEIGHT, WIDTH] from 0 to 1."""
    return torch.stack([torch.from_numpy(picture(which, 1)).permute(2, 0, 1).float() / 255 for which in (0, 1)])


def probed(x):
    flat = x.detach().reshape(-1)
    values = flat[torch.arange(PROBES) * (len(flat) // PROBES)]
    return {"shape": list(x.shape), "rms": float(flat.double().square().mean().sqrt()), "values": [float(v) for v in values]}


def watched(modules, run):
    found = []
    hooks = [module.register_forward_hook(lambda _, __, out, name=name: found.append({"name": name, **probed(out)}))
             for name, module in modules]
    with torch.no_grad():
        result = run()
    for hook in hooks:
        hook.remove()
    return found, result


NAMES = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2",
         *(f"Mixed_{name}" for name in ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"])]


def fid_form():
    # pytorch-fid builds its network with the weights on the web, and another one around it: these are given in their place.
    shapes = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False).state_dict()
    inception.load_state_dict_from_url = lambda *_, **__: weights(shapes)
    network = inception.fid_inception_v3().eval()
    inception.fid_inception_v3 = lambda: network
    blocks = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    modules = [(name, getattr(network, name)) for name in NAMES if not name.startswith("maxpool")]
    modules += [("maxpool1", blocks.blocks[0][3]), ("maxpool2", blocks.blocks[1][2])]
    found, features = watched(modules, lambda: blocks(batch())[0].flatten(1))
    return network, blocks, found, features


def torchvision_form():
    network = torchvision.models.inception_v3(weights=None, transform_input=True, init_weights=False).eval()
    network.load_state_dict(weights(network.state_dict()))
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pictures = normalize(F.interpolate(batch(), size=(299, 299), mode="bilinear", align_corners=False))
    seen = {}
    network.avgpool.register_forward_hook(lambda _, __, out: seen.update(features=out.flatten(1)))
    found, logits = watched([(name, getattr(network, name)) for name in NAMES], lambda: network(pictures))
    return found, seen["features"], logits


def clean(picture):
    """clean-fid's `make_resizer("PIL", False, "bicubic", (299, 299))`, and what it gives its network."""
    channels = [np.asarray(Image.fromarray(picture[:, :, c].astype(np.float32)).resize((299, 299), Image.BICUBIC))
                for c in range(3)]
    return torch.from_numpy((np.stack(channels).clip(0, 255) - 128) / 128)


def exact_distance(a, b):
    """FID by the eigenvalues of a matrix of the pictures, which is not singular as that of the features is."""
    a, b = a.double().numpy(), b.double().numpy()
    x, y = [(v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (a, b)]
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.square(x).sum() + np.square(y).sum() - 2 * root)


def whole_way(network, blocks):
    with tempfile.TemporaryDirectory() as root:
        features = []
        for which in (0, 1):
            os.makedirs(f"{root}/{which}")
            for i in range(COUNT):
                Image.fromarray(picture(which, i)).save(f"{root}/{which}/{i:02}.png")
            files = sorted(f"{root}/{which}/{name}" for name in os.listdir(f"{root}/{which}"))
            features.append(torch.from_numpy(fid_score.get_activations(files, blocks, batch_size=4, num_workers=0)))
        with torch.no_grad():
            resized = [torch.stack([clean(picture(which, i)) for i in range(COUNT)]) for which in (0, 1)]
            # The same network on what is 299x299 from -1 to 1 already.
            blocks.resize_input = blocks.normalize_input = False
            cleaned = [blocks(x)[0].flatten(1) for x in resized]
    moments = [(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in features]
    fid = fid_score.calculate_frechet_distance(*moments[0], *moments[1])
    kid = kid_features_to_metric(*features, kid_subsets=1, kid_subset_size=COUNT, verbose=False)
    # The scores' own code has no bias.
    logits = features[0].float() @ network.fc.weight.detach().T
    score = isc_features_to_metric(logits, 1, shuffle=False)
    return {
        "count": COUNT, "width": WIDTH, "height": HEIGHT,
        "fid": float(fid), "fid_exact": exact_distance(*features), "fid_of_clean": exact_distance(*cleaned),
        "kid": kid["kernel_inception_distance_mean"], "is": score["inception_score_mean"],
    }


torch.set_num_threads(int(os.environ.get("THREADS", "1")))
os.makedirs(FOLDER, exist_ok=True)
network, blocks, found, features = fid_form()
logits = features @ network.fc.weight.detach().T
fid = {"classes": 1008, "blocks": sorted(found, key=lambda block: NAMES.index(block["name"])), "features": probed(features),
       "logits": probed(logits)}
found, features, logits = torchvision_form()
other = {"classes": 1000, "blocks": found, "features": probed(features), "logits": probed(logits)}
resized = {
    "pytorch-fid": probed(2 * F.interpolate(batch(), size=(299, 299), mode="bilinear", align_corners=False) - 1),
    "clean-fid": probed(torch.stack([clean(picture(which, 1)) for which in (0, 1)])),
}
for name, case in [("fid", fid), ("torchvision", other), ("resized", resized), ("figures", whole_way(network, blocks))]:
    with open(f"{FOLDER}/{name}.json", "w") as file:
        json.dump(case, file)
        file.write("\n")
    print(name, "written", file=sys.stderr)
