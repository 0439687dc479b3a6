"""Ops that some cards cannot compute in some types, although TensorRT has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from singlecard.capture import ops, quantized
from singlecard.errors import TargetError
from singlecard.lowering.call import Call, meta_of, op_name, tensors_in
from singlecard.targets import check_types

aten = torch.ops.aten

#: Turing has no FP32 matrix products (tensorrt_rtx 1.7.1.116: "FP32 GEMM is not supported"); FP32
#: convolutions build. tests/test_targets.py measures both again.
_PRODUCTS = frozenset(
    {
        ops.attention,
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        aten.addmm.default,
        aten.baddbmm.default,
    }
)


#: Ops whose argument ``kind`` names a type that not every card has.
_QUANTIZED = (quantized.dequantize, quantized.fake_quantize, quantized.quantized_attention)


def target_refusal(node: fx.Node, targets: Sequence[str]) -> str | None:
    """Return why an op cannot be part of an engine for these cards, or None."""
    if node.target in _QUANTIZED:
        return _type_refusal(node, Call.of(node).arguments["kind"], targets)
    operands = list(tensors_in([meta_of(arg) for arg in node.args]))
    results = tensors_in([node.meta.get("val")])
    if any(value.dtype == torch.bfloat16 for value in (*operands, *results)):
        # Whatever an op makes of them: a cast alone is refused on sm75 (tensorrt_rtx 1.7.1.116).
        return _type_refusal(node, "bf16", targets)
    if "sm75" not in targets or node.target not in _PRODUCTS:
        return None
    if any(value.dtype == torch.float32 for value in operands):
        return (
            f"{op_name(node)} computes in float32, and sm75 has no FP32 matrix products: "
            "choose precision='fp16' or leave out sm75"
        )
    return None


def _type_refusal(node: fx.Node, kind: str, targets: Sequence[str]) -> str | None:
    try:
        check_types([kind], targets)
    except TargetError as error:
        return f"{op_name(node)} has {kind} elements: {error}"
    return None
