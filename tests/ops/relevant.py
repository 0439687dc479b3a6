"""Which ops of PyTorch's operator database an inference backend is measured on.

Each rule below leaves ops out by a reason that has nothing to do with how well they are lowered.
What is merely hard (shapes that depend on data, sorting, integer matrices) stays in and counts.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db

DTYPES = (torch.float32, torch.float16, torch.int64, torch.bool)


@dataclass(frozen=True)
class Rule:
    """Names (regular expressions on the whole name) that are left out, and why."""

    reason: str
    names: tuple[str, ...]


RULES = (
    Rule(
        "complex numbers: TensorRT has none",
        (
            r"fft\..*(?<!shift)",
            r"i?stft",
            "complex|polar|imag|view_as_complex|view_as_real|cdouble|cfloat|chalf",
            r"nn\.functional\.silu\.complex",
        ),
    ),
    Rule("sparse tensors: TensorRT has none", (r"sparse\..*", "to_sparse")),
    Rule(
        "solvers and factorizations of LAPACK: iterative, not part of inference",
        (
            r"linalg\.(cholesky|cond|det|eig|householder|ldl|lstsq|lu|qr|slogdet|inv|solve)\w*.*",
            r"linalg\.(matrix_rank|pinv|svd|svdvals|tensorinv|tensorsolve)(\..*)?",
            "cholesky.*|geqrf|lu|lu_solve|lu_unpack|qr|svd|ormqr|pinverse|triangular_solve|logdet",
            r"norm\.nuc|svd_lowrank|pca_lowrank",
        ),
    ),
    Rule(
        "random numbers, or memory that nobody wrote: there is no answer to compare with",
        (
            r"cauchy|exponential|geometric|log_normal|normal.*|uniform|rand.*|bernoulli",
            r"multinomial|empty.*|new_empty.*|resize_.*",
            r"nn\.functional\.(dropout.*|alpha_dropout|feature_alpha_dropout.*|rrelu)",
            r"nn\.functional\.fractional_max_pool.*",
        ),
    ),
    Rule(
        "gradients: inference has none",
        (r".*_backward(_data)?", r"nn\.functional\.max_unpool.*\.grad", "gradient"),
    ),
    Rule(
        "special functions of physics and statistics",
        (
            r"special\.(airy|bessel|chebyshev|hermite|laguerre|legendre|modified|scaled|shifted).*",
            r"special\.(spherical|zeta|polygamma|i0e|i1|i1e).*",
            r"polygamma.*|mvlgamma.*|igammac?",
        ),
    ),
    Rule(
        "kernels that exist on CUDA only",
        (r"jiterator_.*", r".*triton.*", r"torch\._scaled_mm.*"),
    ),
    Rule("answers a shape or a number, not a tensor", ("broadcast_shapes|item|equal|allclose",)),
)


def full_name(op: Any) -> str:
    """Return the name of an op with its variant, as the page and the records spell it."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def dtypes_of(op: Any) -> list[torch.dtype]:
    """Return the types, of those tested, that an op takes on a CPU."""
    return [dtype for dtype in DTYPES if dtype in op.supported_dtypes("cpu")]


def exclusion(op: Any) -> str | None:
    """Return why an op is not measured, or None where it is."""
    name = full_name(op)
    for rule in RULES:
        if any(re.fullmatch(pattern, name) for pattern in rule.names):
            return rule.reason
    if not dtypes_of(op):
        return "takes none of float32, float16, int64 and bool on a CPU"
    return None


@functools.cache
def all_ops() -> dict[str, Any]:
    return {full_name(op): op for op in op_db}


@functools.cache
def relevant_ops() -> dict[str, Any]:
    """Return the measured ops by name."""
    return {name: op for name, op in all_ops().items() if exclusion(op) is None}
