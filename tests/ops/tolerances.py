"""How close an answer must be to eager PyTorch's.

Integers and truth values must be equal. Floats may differ by the rounding of one more operation or
of another order of summation:

| type | relative to the value | relative to the largest value of the output | absolute |
| --- | --- | --- | --- |
| float32 | 1e-4 | 1e-5 | 1e-6 |
| float16 | 1e-2 | 4e-3 | 1e-3 |
| bfloat16 | 5e-2 | 2e-2 | 1e-2 |

The second column is for sums in which large terms cancel. NaN must be NaN, infinities must agree.
An answer in float16 may also be that of the same call in float32, rounded: PyTorch's decompositions
compute in float32 where its kernels do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: By type: relative, relative to the largest value, absolute.
TOLERANCES = {
    torch.float32: (1e-4, 1e-5, 1e-6),
    torch.float16: (1e-2, 4e-3, 1e-3),
    torch.bfloat16: (5e-2, 2e-2, 1e-2),
    torch.float64: (1e-7, 1e-9, 1e-10),
}


def difference(outputs: Sequence[Any], expected: Sequence[Any]) -> str | None:
    """Return one sentence where answers are not close enough, else None."""
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs instead of {len(expected)}"
    for place, (got, want) in enumerate(zip(outputs, expected, strict=True)):
        problem = _difference(got, want)
        if problem:
            return f"output {place} {problem}"
    return None


def _difference(got: Any, want: Any) -> str | None:
    if not isinstance(want, torch.Tensor):
        return None if got == want or got is want else f"is {got!r} instead of {want!r}"
    if not isinstance(got, torch.Tensor):
        return f"is {type(got).__name__} instead of a tensor"
    if got.dtype != want.dtype:
        return f"has type {got.dtype} instead of {want.dtype}"
    if got.shape != want.shape:
        return f"has shape {list(got.shape)} instead of {list(want.shape)}"
    if want.layout != torch.strided or not want.numel():
        return None
    if not want.is_floating_point():
        wrong = got != want
        return _text(got, want, wrong) if bool(wrong.any()) else None
    relative, scaled, absolute = TOLERANCES[want.dtype]
    x, y = got.double(), want.double()
    finite = torch.isfinite(y)
    largest = float(y[finite].abs().max()) if bool(finite.any()) else 0.0
    limit = absolute + scaled * largest + relative * y.abs()
    same = torch.where(finite, (x - y).abs() <= limit, (x == y) | (x.isnan() & y.isnan()))
    return None if bool(same.all()) else _text(got, want, ~same)


def _text(got: torch.Tensor, want: torch.Tensor, wrong: torch.Tensor) -> str:
    first = tuple(wrong.nonzero()[0].tolist())
    count = int(wrong.sum())
    return (
        f"differs in {count} of {wrong.numel()} elements, first at {list(first)}: "
        f"{got[first].item()} instead of {want[first].item()}"
    )
