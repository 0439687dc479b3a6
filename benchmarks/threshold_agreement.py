"""Thresholds of singlecard's calibration beside those of published implementations.

    pip install onnxruntime==1.31.1 nvidia-modelopt==0.47.0 requests datasets
    python benchmarks/threshold_agreement.py

Each gets the same histogram of 2,048 bins of magnitudes, whose largest is a power of two, so that
singlecard's bins, of which it keeps more, fall together to the same ones.

NVIDIA ModelOpt's are the functions of pytorch-quantization, from which it took them over:
`_compute_amax_entropy`, which is the search that S. Migacz described for TensorRT (GTC 2017),
`_compute_amax_mse` and `_compute_amax_percentile`. ONNX Runtime's percentile is the same; its
entropy is another algorithm, that of Apache MXNet:

- it has both signs in one histogram, and zeros among them (ModelOpt gives the first bin the count
  of the second, singlecard leaves zeros out);
- a level has ``bins // levels`` bins, and the last all that are left, where the published one
  shares them out evenly;
- the bins left over, and those that are empty, get 0.0001 of a count each, not of the whole;
- counts spread over bins are cut to integers.

ModelOpt 0.47's `_compute_amax_mse` calls `fake_tensor_quant` with pytorch-quantization's order of
arguments, where its own has another argument between, and returned its first candidate for all that
stands here. So it is given a `fake_tensor_quant` with the arguments in that order.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from singlecard_calib.methods import BINS, LEVELS, METHODS
from singlecard_calib.observe import Observer

#: The largest magnitude of every distribution.
LARGEST = 4.0

PERCENTILE = 99.99

#: What a threshold may differ by, relative to the published one.
TOLERANCE = 1e-3


def distributions(elements: int = 200_000) -> dict[str, np.ndarray]:
    """Return float32 samples by name, scaled so that the largest magnitude is `LARGEST`."""
    dice = np.random.default_rng(0)
    outliers = dice.standard_normal(elements)
    outliers[:20] *= 12
    drawn = {
        "Gaussian": dice.standard_normal(elements),
        "Laplace": dice.laplace(size=elements),
        "Gaussian, then ReLU": np.maximum(dice.standard_normal(elements), 0),
        "Gaussian, 20 outliers": outliers,
    }
    return {
        name: (values / np.abs(values).max() * LARGEST).astype(np.float32)
        for name, values in drawn.items()
    }


def modelopt_threshold(values: np.ndarray, method: str) -> float:
    """Return the threshold of pytorch-quantization's functions, as ModelOpt carries them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calib = importlib.import_module("modelopt.torch.quantization.calib.histogram")
    counts, edges = np.histogram(np.abs(values), bins=BINS, range=(0, LARGEST))
    if method == "percentile":
        return float(calib._compute_amax_percentile(counts, edges, PERCENTILE))
    if method == "entropy":
        return float(calib._compute_amax_entropy(counts, edges, 8, False))
    with mock.patch.object(calib, "fake_tensor_quant", fake_tensor_quant):
        return float(calib._compute_amax_mse(counts, edges, 8, False))


def fake_tensor_quant(values: Tensor, largest: Tensor, bits: int, unsigned: bool) -> Tensor:
    """Round to signed 8-bit levels and back, as pytorch-quantization's function of this name."""
    assert bits == 8 and not unsigned
    scale = LEVELS / largest
    return torch.clamp((values * scale).round(), -LEVELS, LEVELS) / scale


def onnxruntime_threshold(values: np.ndarray, method: str) -> float:
    """Return the threshold of ONNX Runtime's collector: percentile, or entropy of both signs."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, BINS, 2 * LEVELS + 1, PERCENTILE, "same")
    least, most = values.min(), values.max()
    if method == "percentile":
        counts, edges = np.histogram(np.abs(values), bins=BINS, range=(0, LARGEST))
    else:
        counts, edges = np.histogram(values, bins=2 * BINS, range=(-LARGEST, LARGEST))
    edges = edges.astype(np.float32)
    collector.histogram_dict["x"] = (counts, edges, least, most, np.float32(LARGEST))
    with contextlib.redirect_stdout(io.StringIO()):
        return float(max(abs(end) for end in collector.compute_collection_result()["x"][:2]))


def compare() -> Iterator[tuple[str, str, str, float, float]]:
    """Yield distribution, method, peer, the peer's threshold and singlecard's."""
    for name, values in distributions().items():
        seen = Observer()
        seen.add(torch.from_numpy(values))
        for method in ("percentile", "entropy", "mse"):
            own = METHODS[method](seen)
            yield name, method, "ModelOpt", modelopt_threshold(values, method), own
            if method != "mse":
                yield name, method, "ONNX Runtime", onnxruntime_threshold(values, method), own


def main() -> None:
    print("| values | method | peer | peer's | singlecard's | bins apart | relative | |")
    print("|" + " --- |" * 8)
    for name, method, peer, theirs, own in compare():
        relative = abs(own - theirs) / theirs
        bins = (own - theirs) * BINS / LARGEST
        verdict = "agrees" if relative <= TOLERANCE else "differs"
        print(
            f"| {name} | {method} | {peer} | {theirs:.5f} | {own:.5f} | {bins:+.1f} | "
            f"{relative:.1e} | {verdict} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
