"""Runs a script as on a card that TensorRT for RTX does not serve: an H200, on the CPU.

    python tests/examples/pretending.py SCRIPT [ARGUMENT...]

What PyTorch says of the card is made up, for the one place that asks; the rest is as it is.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from singlecard import backend
from singlecard.artifact import loading
from singlecard.runtime import device

CUDA = SimpleNamespace(
    is_available=lambda: True,
    get_device_capability=lambda device: (9, 0),
    get_device_name=lambda device: "NVIDIA H200",
)


def main() -> None:
    refusal = device.card_refusal
    here: Any = SimpleNamespace(device=torch.device("cuda:0"))
    vars(device)["torch"] = SimpleNamespace(cuda=CUDA)
    for module in (backend, loading):
        vars(module)["card_refusal"] = lambda tensors: refusal([here])
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
