"""How far rounding takes an answer, found by rounding: no tolerance is guessed for a program.

A program's result is as far off as the errors of its steps take it: cancellation, steep functions
and comparisons make much of little. So where an answer is not close at first sight, PyTorch runs
the program again, with the result of every op off by a unit or two in the last place of the type
that an engine computes with. An answer that is no further off than a few times that is right. An
integer or truth value that flips on the way is not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

#: By precision: the type that values are rounded to, and the error of an op relative to its result.
#: TensorRT's exponentials, sines and error functions are off by some units more than one; sums have
#: another order.
_ROUNDING = {
    "fp32": (torch.float32, 2.0**-21),
    "fp16": (torch.float16, 2.0**-10),
    "bf16": (torch.bfloat16, 2.0**-7),
}

#: Answers may be this many times further off than the furthest of the runs with errors: six runs
#: do not find the worst case, and an op such as attention stands for several roundings.
_TIMES = 8.0

aten = torch.ops.aten

#: Ops whose results are exact: they move values, or make them of integers.
_EXACT = frozenset(
    (
        aten.arange.default, aten.arange.start, aten.arange.start_step, aten.zeros.default,
        aten.ones.default, aten.full.default, aten.zeros_like.default, aten.ones_like.default,
        aten.full_like.default, aten.scalar_tensor.default, aten.lift_fresh.default, aten.eye.m,
        aten.eye.default, aten.new_zeros.default, aten.new_full.default, aten.new_ones.default,
        aten.empty.memory_format, aten.empty_strided.default, aten.copy_.default,
        aten.clone.default,
        aten.cat.default, aten.stack.default, aten.index.Tensor, aten.gather.default,
        aten.embedding.default, aten.index_select.default, aten.constant_pad_nd.default,
        aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar,
        aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default,
        aten.sign.default, aten.relu.default, aten.maximum.default, aten.minimum.default,
        aten.neg.default, aten.abs.default, aten.flip.default, aten.roll.default, aten.tril.default,
        aten.triu.default, aten.zero_.default, aten.fill_.Scalar, aten.empty_like.default,
    )
)  # fmt: skip


class Rounded(TorchDispatchMode):
    """Gives the results of ops an error of the last place of a precision."""

    def __init__(self, precision: str, seed: int) -> None:
        super().__init__()
        self.dtype, self.error = _ROUNDING[precision]
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        computes = func not in _EXACT and not _is_view(func)
        if computes and self.dtype is not torch.float32 and not _writes(func):
            args, kwargs = pytree.tree_map_only(Tensor, self._rounded, (args, kwargs))
        results = func(*args, **(kwargs or {}))
        return pytree.tree_map_only(Tensor, self._off, results) if computes else results

    def _rounded(self, value: Tensor) -> Tensor:
        """Engines of FP16 take the FP32 values of a model in FP16."""
        return value.to(self.dtype).float() if value.dtype is torch.float32 else value

    def _off(self, value: Tensor) -> Tensor:
        if not value.is_floating_point() or not value.numel():
            return value
        error = max(self.error, torch.finfo(value.dtype).eps) if value.itemsize < 8 else self.error
        sign = torch.randint(0, 3, value.shape, generator=self.generator) - 1
        changed = value * (1 + sign.to(value.dtype) * error)
        return value.copy_(self._rounded(changed)) if _is_writable(value) else changed


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _is_writable(value: Tensor) -> bool:
    return all(
        size <= 1 or stride > 0 for size, stride in zip(value.shape, value.stride(), strict=True)
    )


def tolerance_of(exact: Any, others: Sequence[Any]) -> Any:
    """Return how far a leaf may be off; None where it is not compared.

    Args:
        exact: the answer of eager PyTorch.
        others: its answers with errors.
    """
    if not isinstance(exact, Tensor):
        return 0.0
    if any(other.shape != exact.shape for other in others):
        return None  # a size that follows from values
    if not exact.is_floating_point():
        return 0.0 if all(torch.equal(other, exact) for other in others) else None
    finite = torch.isfinite(exact)
    if any(not torch.equal(torch.isfinite(other), finite) for other in others):
        return None  # on the edge of what the type holds
    if not bool(finite.any()):
        return 0.0
    exact = exact.double()
    return _TIMES * max(float((other.double() - exact)[finite].abs().max()) for other in others)
