"""Calls of declared ops that no graph of PyTorch's operator database holds, by full name."""

from __future__ import annotations

from typing import Any

import torch

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _floats(*shape: int) -> torch.Tensor:
    return torch.linspace(-2.0, 2.0, max(torch.Size(shape).numel(), 1)).reshape(shape)


def _integers(*shape: int) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) - 3).reshape(shape)


def _call(*args: Any, **kwargs: Any) -> Arguments:
    return args, kwargs


_SCALAR = (_call(_floats(3, 4), 0.5), _call(_integers(3, 4), 2))

EXTRA: dict[str, tuple[Arguments, ...]] = {
    "aten._unsafe_view.default": (_call(_floats(3, 4), [2, 6]),),
    "aten.bitwise_and.Scalar": (_call(_floats(3, 4) > 0, True),),
    "aten.bitwise_left_shift.Tensor_Scalar": (_call(_integers(3, 4), 3),),
    "aten.bitwise_or.Scalar": (_call(_floats(3, 4) > 0, False),),
    "aten.bitwise_right_shift.Tensor_Scalar": (_call(_integers(3, 4), 1),),
    "aten.bitwise_xor.Scalar": (_call(_floats(3, 4) > 0, True),),
    "aten.copysign.Scalar": _SCALAR,
    "aten.detach.default": (_call(_floats(3, 4)),),
    "aten.div.Scalar": _SCALAR,
    "aten.div.Scalar_mode": (
        _call(_floats(3, 4), 0.75, rounding_mode="floor"),
        _call(_integers(3, 4), 2, rounding_mode="trunc"),
    ),
    "aten.eq.Scalar": _SCALAR,
    "aten.ge.Scalar": _SCALAR,
    "aten.gt.Scalar": _SCALAR,
    "aten.le.Scalar": _SCALAR,
    "aten.lt.Scalar": _SCALAR,
    "aten.matmul.default": (_call(_floats(2, 3, 4), _floats(4, 5)),),
    "aten.ne.Scalar": _SCALAR,
    "aten.pow.Scalar": (_call(2.5, _floats(3, 4)),),
    "aten.remainder.Scalar": _SCALAR,
    "aten.remainder.Scalar_Tensor": (_call(7, _integers(3, 4) + 10),),
    "aten.reshape.default": (_call(_floats(3, 4), [2, -1]),),
    "aten.squeeze.default": (_call(_floats(3, 1, 4)),),
    "aten.squeeze.dim": (_call(_floats(3, 1, 4), 1), _call(_floats(3, 4), 0)),
    "aten.sub.Scalar": _SCALAR,
}
