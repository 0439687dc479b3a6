"""Calls of declared ops that no graph of PyTorch's operator database holds, by full name."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _floats(*shape: int) -> torch.Tensor:
    return torch.linspace(-2.0, 2.0, max(torch.Size(shape).numel(), 1)).reshape(shape)


def _integers(*shape: int) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) - 3).reshape(shape)


def _codes(*shape: int) -> torch.nn.Parameter:
    """Return INT8 codes, as a weight."""
    values = (torch.arange(torch.Size(shape).numel()) % 15 - 7).to(torch.int8)
    return torch.nn.Parameter(values.reshape(shape), requires_grad=False)


def _scale(*shape: int) -> torch.nn.Parameter:
    """Return positive scales, as a weight."""
    return torch.nn.Parameter(_floats(*shape).abs() / 64 + 0.25, requires_grad=False)


def _call(*args: Any, **kwargs: Any) -> Arguments:
    return args, kwargs


_LINE, _IMAGE, _VOLUME = _floats(1, 2, 5), _floats(1, 2, 5, 6), _floats(1, 2, 2, 3, 4)
_HEADS = tuple(_floats(1, 2, 4, 16).sin() * scale for scale in (1.0, 0.5, 2.0))
_BIAS = _floats(1, 2, 4, 4)
_STEPS = [2.0**-9, 2.0**-8, 2.0**-6, 2.0**-8]
_MANY_PLACES = torch.arange(70_000) % 300
_SCALAR = (_call(_floats(3, 4), 0.5), _call(_integers(3, 4), 2))

EXTRA: dict[str, tuple[Arguments, ...]] = {
    "aten._to_copy.default": (_call(_floats(3, 4), dtype=torch.float16),),
    "aten.clamp.default": (_call(_floats(3, 4), -1.0, 0.5),),
    "aten.rsub.Scalar": _SCALAR,
    "aten._unsafe_view.default": (_call(_floats(3, 4), [2, 6]),),
    "aten.any.dim": (_call(_floats(3, 4) > 1, 1, True),),
    "aten.__lshift__.Scalar": (_call(_integers(3, 4), 3),),
    "aten.__lshift__.Tensor": (_call(_integers(3, 4), _integers(4) + 3),),
    "aten.__rshift__.Scalar": (_call(_integers(3, 4), 3),),
    "aten.__rshift__.Tensor": (_call(_integers(3, 4), _integers(4) + 3),),
    "aten.bitwise_and.Scalar_Tensor": (_call(6, _integers(3, 4)),),
    "aten.bitwise_left_shift.Scalar_Tensor": (_call(3, _integers(4) + 3),),
    "aten.bitwise_or.Scalar_Tensor": (_call(6, _integers(3, 4)),),
    "aten.bitwise_right_shift.Scalar_Tensor": (_call(-30, _integers(4) + 3),),
    "aten.bitwise_xor.Scalar_Tensor": (_call(6, _integers(3, 4)),),
    "aten.embedding_renorm.default": (
        _call(_floats(5, 4), torch.tensor([1, 3, 1]), 1.5, 2.0),
        _call(_floats(5, 4), torch.tensor([[0], [4]]), 0.5, 1.0),
    ),
    "aten.nonzero_static.default": (
        _call(_integers(3, 4), size=20),
        _call(_floats(2, 3) > 0, size=2, fill_value=7),
    ),
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
    "aten.matmul.default": (
        _call(_floats(2, 3, 4), _floats(4, 5)),
        _call(_integers(300, 300), _integers(300, 300)),
    ),
    "aten.mul.Scalar": _SCALAR,
    "aten.ne.Scalar": _SCALAR,
    "aten.pow.Scalar": (_call(2.5, _floats(3, 4)),),
    "aten.remainder.Scalar": _SCALAR,
    "aten.remainder.Scalar_Tensor": (_call(7, _integers(3, 4) + 10),),
    "aten.reshape.default": (_call(_floats(3, 4), [2, -1]),),
    "aten.squeeze.default": (_call(_floats(3, 1, 4)),),
    "aten.squeeze.dim": (_call(_floats(3, 1, 4), 1), _call(_floats(3, 4), 0)),
    "aten.sub.Scalar": _SCALAR,
    "aten._embedding_bag.default": (
        _call(_floats(6, 3), torch.tensor([0, 2, 5, 1, 1]), torch.tensor([0, 2])),
    ),
    "aten._native_batch_norm_legit.no_stats": (
        _call(_floats(2, 3, 4), _floats(3), _floats(3), True, 0.1, 1e-5),
    ),
    "aten._native_batch_norm_legit_no_training.default": (
        _call(_floats(2, 3, 4), None, _floats(3), _floats(3), _floats(3).exp(), 0.1, 1e-5),
    ),
    "aten._pdist_forward.default": (_call(_floats(4, 3), 2.0), _call(_floats(4, 3), 3.0)),
    "aten._upsample_bicubic2d_aa.default": (_call(_IMAGE, [3, 4], False),),
    "aten._upsample_nearest_exact1d.default": (_call(_LINE, [7]),),
    "aten._upsample_nearest_exact2d.default": (_call(_IMAGE, [7, 3]),),
    "aten._upsample_nearest_exact3d.default": (_call(_VOLUME, [3, 2, 5]),),
    "aten.bucketize.Scalar": (_call(0.3, _floats(5)),),
    "aten.col2im.default": (_call(_floats(1, 12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]),),
    "aten.fmod.Scalar": _SCALAR,
    "aten.index_put.default": (
        _call(_floats(3, 4), [torch.tensor([0, 2, 0])], _floats(3, 4), True),
        _call(_floats(300), [_MANY_PLACES], _floats(70_000), True),
    ),
    "aten.index_reduce.default": (
        _call(_floats(3, 4), 0, torch.tensor([0, 2]), _floats(2, 4), "amax"),
        _call(_floats(300), 0, _MANY_PLACES, _floats(70_000), "amax"),
    ),
    "aten.histc.default": (_call(_floats(200_000), 100, -2.0, 2.0),),
    "aten.put.default": (_call(_floats(300), _MANY_PLACES, _floats(70_000), True),),
    "aten.max_pool2d_with_indices.default": (_call(_IMAGE, [2, 2], [1, 1], [0, 0], [2, 2]),),
    "aten.max_pool3d_with_indices.default": (_call(_VOLUME, [2, 2, 2]),),
    "aten.nanmedian.default": (_call(_floats(3, 5)),),
    "aten.pow.Tensor_Scalar": (_call(_integers(3, 4), 3),),
    "aten.reflection_pad2d.default": (_call(_IMAGE, [1, 2, 0, 1]),),
    "aten.reflection_pad3d.default": (_call(_VOLUME, [1, 1, 0, 1, 1, 0]),),
    "aten.replication_pad2d.default": (_call(_IMAGE, [1, 2, 0, 1]),),
    "aten.repeat_interleave.Tensor": (_call(torch.tensor([2, 0, 1]), output_size=3),),
    "aten.replication_pad3d.default": (_call(_VOLUME, [1, 1, 0, 1, 1, 0]),),
    "aten.scatter.value": (_call(_floats(3, 4), 1, torch.tensor([[0, 2], [1, 3]]), 9.0),),
    "aten.scatter.value_reduce": (
        _call(_floats(3, 4), 1, torch.tensor([[0, 2], [1, 3]]), 9.0, reduce="add"),
    ),
    "aten.scatter.reduce": (
        _call(_floats(3, 4), 1, torch.tensor([[0, 2], [1, 3]]), _floats(2, 2), reduce="add"),
    ),
    "aten.searchsorted.Scalar": (_call(_floats(5), 0.3),),
    "aten.select_copy.int": (_call(_floats(3, 4), 0, 1),),
    "aten.slice_scatter.default": (_call(_floats(6, 4), _floats(3, 4), 0, 0, 6, 2),),
    "aten.slice_copy.Tensor": (_call(_floats(3, 4), 1, 1, 3),),
    "aten.sort.default": (_call(_floats(3, 4), 1, True),),
    "aten.split_copy.Tensor": (_call(_floats(3, 4), 2, 1),),
    "aten.median.default": (_call(_floats(3, 5)),),
    "aten.unfold.default": (_call(_floats(3, 8), 1, 4, 2),),
    "aten.upsample_bicubic2d.default": (_call(_IMAGE, [7, 8], True),),
    "aten.upsample_bilinear2d.default": (_call(_IMAGE, [7, 8], True),),
    "aten.upsample_linear1d.default": (_call(_LINE, [7], True),),
    "aten.upsample_nearest1d.default": (_call(_LINE, [7]),),
    "aten.upsample_nearest2d.default": (_call(_IMAGE, [7, 3]),),
    "aten.upsample_nearest3d.default": (_call(_VOLUME, [3, 2, 5]),),
    "aten.upsample_trilinear3d.default": (_call(_VOLUME, [3, 4, 5], True),),
    "prims.convert_element_type.default": (_call(_floats(3, 4), torch.float16),),
    "singlecard.rotary.default": (
        _call(_floats(1, 2, 3, 8), _floats(1, 1, 3, 8).cos(), _floats(1, 1, 3, 8).sin(), False),
        _call(_floats(1, 2, 3, 8), _floats(1, 1, 3, 8).cos(), _floats(1, 1, 3, 8).sin(), True),
    ),
    "singlecard.update_cache.default": (
        _call(_floats(2, 3, 8, 4), _floats(2, 3, 2, 4), torch.tensor([5])),
    ),
    "singlecard.dequantize.default": (
        _call(_codes(4, 64), _scale(4, 1), "int8", torch.float32),
        _call(_codes(4, 64), _scale(4, 2), "int4", torch.float32),
        _call(_codes(3, 5), _scale(), "int8", torch.float16),
    ),
    "singlecard.fake_quantize.default": (_call(_floats(3, 4), _scale(), "int8"),),
    "singlecard.quantized_attention.default": (
        _call(*_HEADS, None, False, None, False, False, _STEPS, "int8"),
        _call(*_HEADS, _BIAS, False, None, False, False, _STEPS, "int8"),
    ),
    "singlecard.rms_norm.default": (_call(_floats(3, 4), _floats(4), 1e-5),),
    "singlecard.grouped_mm.default": (
        _call(_floats(5, 3), _floats(2, 3, 4), torch.tensor([2, 5], dtype=torch.int32)),
    ),
}
