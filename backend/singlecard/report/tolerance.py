"""How far an answer may be from eager PyTorch's and still be as good as its type."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

#: Relative L2 errors. TF32 has the 10 bits of FP16, BF16 three fewer. Those of quantized models
#: tell a scale that is wrong from one that is right; whether a model is still good at its task, its
#: own metric tells.
_BY_PRECISION = {
    "fp32": 1e-5,
    "tf32": 5e-3,
    "fp16": 5e-3,
    "bf16": 4e-2,
    "int8-weight": 4e-2,
    "int8": 1e-1,
    "fp8": 1e-1,
    "int4-weight": 2e-1,
    "auto": 2e-1,
}
_BY_TYPE = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def usual_tolerance(precision: str, expected: Any) -> float:
    """Return the largest relative L2 error to expect of a precision.

    A model that keeps its own tensors in a lower precision is as inexact as that, whatever was
    asked for: ``expected`` are its outputs.
    """
    kinds = {precision}
    for leaf in pytree.tree_leaves(expected):
        if isinstance(leaf, torch.Tensor) and leaf.dtype in _BY_TYPE:
            kinds.add(_BY_TYPE[leaf.dtype])
    return max(_BY_PRECISION[kind] for kind in kinds)
