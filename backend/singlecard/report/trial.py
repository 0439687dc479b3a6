"""Trial builds: what this installation can really do, whatever is written of it.

Imports PyTorch and TensorRT: whatever is wrong with them is raised by the import.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch

from singlecard.errors import BuildError
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.net import Net
from singlecard.targets import TARGETS

_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def build_product(precision: str = "fp16", targets: Sequence[str] = ()) -> int:
    """Build an engine of one matrix product; return its size in bytes.

    Raises:
        BuildError: TensorRT has no such product for these targets.
    """
    net = Net()
    dtype = _TYPES[precision]
    x = net.input("x", dtype, (16, 64))
    net.mark_output(net.matmul(x, net.constant(torch.ones(64, 64, dtype=dtype))), "y")
    file = io.BytesIO()
    build_plan(net, {}, BuildSettings(tuple(targets), precision == "tf32"), file)
    return file.tell()


def measure_targets() -> dict[str, dict[str, bool]]:
    """Return for each target whether a matrix product of each precision builds for it."""
    return {
        target: {precision: _builds(precision, target) for precision in _TYPES}
        for target in TARGETS
    }


def _builds(precision: str, target: str) -> bool:
    try:
        build_product(precision, [target])
    except BuildError:
        return False
    return True
