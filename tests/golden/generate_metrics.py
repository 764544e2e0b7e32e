"""What other programs make of the same features: FID, KID, the inception score, precision and recall.

    pip install pytorch-fid==0.3.0 torch-fidelity==0.4.0 prdc==0.2 scikit-learn torchvision
    python generate_metrics.py             # writes metrics/figures.json beside this file

The features are not stored: they are sums of four values of `torch.rand`, which both sides have to the bit.
"""
import json
import os

import numpy as np
import torch
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH = 16


def features(seed, count, width=WIDTH, scale=1.0, shift=0.0):
    """[count, width] in float32; each feature goes half with the one before it."""
    uniform = torch.rand(4, count, width, generator=torch.Generator().manual_seed(seed))
    x = uniform[0] + uniform[1] + uniform[2] + uniform[3] - 2
    x = x * scale + shift
    x[:, 1:] = x[:, 1:] + 0.5 * x[:, :-1].clone()
    return x


def figures(samples_of, reference_of, nearest):
    samples, reference = features(**samples_of), features(**reference_of)
    a, b = samples.double().numpy(), reference.double().numpy()
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    size = min(len(a), len(b))
    kid = kid_features_to_metric(samples[:size].double(), reference[:size].double(), kid_subsets=1, kid_subset_size=size,
                                 verbose=False)
    other = fid_statistics_to_metric(*(fid_features_to_statistics(x.double()) for x in (samples, reference)), verbose=False)
    return {
        "samples": samples_of, "reference": reference_of, "nearest": nearest,
        "fid": float(calculate_frechet_distance(*moments[0], *moments[1])),
        "fid_of_torch_fidelity": other["frechet_inception_distance"],
        "kid_of_first": size, "kid": kid["kernel_inception_distance_mean"],
        **{name: float(value) for name, value in compute_prdc(b, a, nearest).items()},
    }


LOGITS = dict(seed=5, count=303, width=10, scale=3.0)
cases = [
    figures(dict(seed=1, count=400), dict(seed=2, count=500, scale=1.25, shift=0.25), 5),
    figures(dict(seed=3, count=300, scale=0.75), dict(seed=4, count=260), 3),
]
scores = [{"splits": splits, "is": score["inception_score_mean"], "is_std": score["inception_score_std"]}
          for splits in (1, 10) for score in [isc_features_to_metric(features(**LOGITS), splits, shuffle=False)]]
os.makedirs(f"{HERE}/metrics", exist_ok=True)
with open(f"{HERE}/metrics/figures.json", "w") as file:
    json.dump({"cases": cases, "logits": LOGITS, "scores": scores}, file, indent=1)
    file.write("\n")
# As pytorch-fid writes statistics, and plainly.
x = features(1, 400).double().numpy()
for save, name in [(np.savez_compressed, "compressed"), (np.savez, "plain")]:
    save(f"{HERE}/metrics/statistics-{name}.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
