"""What rewrites and types ask of ops, whatever lowers them: one table for all that ask.

A fact stands here once, as data: `READS_PLACES[target]` names the arguments that an op reads places
from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch

from singlecard.capture import ops
from singlecard.capture.quantized import dequantize, fake_quantize, quantized_attention

aten = torch.ops.aten


def _overloads(*packets: Any) -> Iterator[Any]:
    """Yield every overload of ops that writes to no argument."""
    for packet in packets:
        for name in packet.overloads():
            overload = getattr(packet, name)
            if not overload._schema.is_mutable:
                yield overload


#: Arguments in which a small step is another answer: places on an axis, what is rounded to whole
#: numbers or taken modulo a number.
_POSITIONS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(_overloads(aten.grid_sampler_2d, aten.grid_sampler_3d), ("grid",)),
    **dict.fromkeys(
        _overloads(
            aten.ceil,
            aten.floor,
            aten.floor_divide,
            aten.fmod,
            aten.frac,
            aten.remainder,
            aten.round,
            aten.trunc,
        ),
        ("self", "other"),
    ),
    aten.div.Tensor_mode: ("self", "other"),
    aten.div.Scalar_mode: ("self", "other"),
    **dict.fromkeys(
        _overloads(aten.bucketize, aten.searchsorted),
        ("self", "input", "boundaries", "sorted_sequence"),
    ),
    **dict.fromkeys(_overloads(aten._cdist_forward), ("x1", "x2")),
}

#: Arguments whose size makes the error: an angle of many turns.
_ANGLES: dict[Any, tuple[str, ...]] = dict.fromkeys(
    _overloads(aten.cos, aten.sin, aten.tan), ("self",)
)

#: Arguments that are compared, with others or among themselves.
_CHOICES: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(
        _overloads(aten.eq, aten.ge, aten.gt, aten.le, aten.lt, aten.ne), ("self", "other")
    ),
    **dict.fromkeys(
        _overloads(aten.argmax, aten.argmin, aten.argsort, aten.kthvalue, aten.sort, aten.topk),
        ("self",),
    ),
    aten.max.dim: ("self",),
    aten.min.dim: ("self",),
}

#: The arguments from which an op reads places, angles or an order. A conversion to integers reads
#: places too, and is told by its types.
READS_PLACES: Mapping[Any, tuple[str, ...]] = MappingProxyType(_POSITIONS | _ANGLES | _CHOICES)

#: Of these, ops that read an order alone where nothing reads their second result.
READS_ORDER: frozenset[Any] = frozenset(
    {aten.max.dim, aten.min.dim, *_overloads(aten.kthvalue, aten.sort, aten.topk)}
)

#: Of these, ops whose places come out exact only if constants among them are, such as a grid.
READS_POSITIONS: frozenset[Any] = frozenset(_POSITIONS)

#: Products, and for each the argument and the axis whose extent is summed over.
SUMS_OVER: Mapping[Any, tuple[int, int]] = MappingProxyType(
    {
        aten.addmm.default: (1, -1),
        aten.baddbmm.default: (1, -1),
        aten.bmm.default: (0, -1),
        aten.linear.default: (0, -1),
        aten.matmul.default: (0, -1),
        aten.mm.default: (0, -1),
        aten.mv.default: (0, -1),
    }
)

#: Ops whose results are features that a model learned, or rounded on purpose: no place is read out
#: of their last digits.
LEARNED: frozenset[Any] = frozenset(
    {
        dequantize,
        fake_quantize,
        quantized_attention,
        ops.attention,
        ops.grouped_mm,
        ops.rms_norm,
        aten.convolution.default,
        aten.embedding.default,
        aten.native_group_norm.default,
        aten.native_layer_norm.default,
        *_overloads(aten._native_batch_norm_legit_no_training, aten.native_batch_norm),
        *_overloads(aten._softmax),
    }
)
