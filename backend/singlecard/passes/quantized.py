"""Quantization as other libraries write it, brought to `singlecard.capture.quantized`'s two ops.

Their ops are known by name: the libraries that define them need not be installed. What TensorRT
cannot do stays with its op, and the reason is noted there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.capture.quantized import KINDS, codes_of, fake_quantize
from singlecard.lowering.call import Call, op_name
from singlecard.lowering.table import REASON
from singlecard.passes.dynamic_quantization import DYNAMIC
from singlecard.passes.rule import replace, rule
from singlecard.passes.weight_codes import add_dequantize, constant_value

aten = torch.ops.aten

_CURE = "use singlecard_calib.pt2e.SinglecardQuantizer, or a symmetric configuration"

#: Ops that move elements and leave them as they are.
_MOVES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
)


def _is(node: Any, *names: str) -> bool:
    """Tell whether a node is a call of one of some ops, whatever its overload."""
    if not isinstance(node, fx.Node) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return str(node.target).rpartition(".")[0] in names


def _refuse(node: fx.Node, why: str) -> bool:
    """Note why an op stays in PyTorch; the graph is not changed."""
    node.meta[REASON] = f"{op_name(node)} {why}"
    return False


@rule(steps=True)
def lift_dequantize(program: Program, node: fx.Node) -> bool:
    """dequantize_per_tensor(view(q))   becomes   view(dequantize_per_tensor(q)).

    Codes have no type in an engine: they are moved once they are numbers again.
    """
    if not _is(node, "quantized_decomposed.dequantize_per_tensor"):
        return False
    changed, move = False, node.args[0]
    while isinstance(move, fx.Node) and move.target in _MOVES:
        source: Any = move.args[0]
        with program.graph.inserting_before(move):
            target, rest = node.target, node.args[1:]
            low = program.graph.call_function(target, (source, *rest), dict(node.kwargs))  # type: ignore[arg-type]
            high = program.graph.call_function(move.target, (low, *move.args[1:]), move.kwargs)
        low.meta, high.meta = dict(node.meta), dict(node.meta)
        low.meta["val"] = source.meta["val"].to(node.meta["val"].dtype)
        node.replace_all_uses_with(high)
        program.graph.erase_node(node)
        if not move.users:
            program.graph.erase_node(move)
        changed, node, move = True, low, source
    return changed


@rule(steps=True)
def name_dequantize(program: Program, node: fx.Node) -> bool:
    """dequantize_per_tensor(quantize_per_tensor(x))   becomes   fake_quantize(x).

    Of a constant, codes or floating point, it becomes ``dequantize``, by channel and group too.
    """
    if not _is(node, *_DEQUANTIZE):
        return False
    source: Any = node.args[0]
    call = Call.of(node)
    scale, zero_point = _scale_and_zero_point(program, call)
    if scale is None:
        if _is(source, "quantized_decomposed.quantize_per_tensor"):
            _refuse(source, DYNAMIC)
        return _refuse(node, DYNAMIC)
    codes = constant_value(program, source)
    if codes is not None:
        return _name_constant(program, call, codes, scale, zero_point)
    if not _is(source, "quantized_decomposed.quantize_per_tensor"):
        return _refuse(node, "meets codes that no op of this graph made")
    before = Call.of(source)
    made = _scale_and_zero_point(program, before)
    if made[0] is None:
        return _refuse(source, DYNAMIC)
    why = _refusal(before, made[0], made[1])
    if why is None and zero_point is not None and bool(zero_point.any()):
        why = f"has {_asymmetry(zero_point)}: {_SYMMETRIC}; {_CURE}"
    if why is None and (scale.ndim or not torch.equal(made[0], scale)):
        why = "reads codes with another scale than they were made with"
    if why is not None:
        _refuse(node, why)
        return _refuse(source, why)
    kind = "fp8" if before.arguments["dtype"] == torch.float8_e4m3fn else "int8"
    x: Any = source.args[0]
    same = _rounded_already(program, x, scale, kind)
    if same is not None and same.meta["val"].dtype == node.meta["val"].dtype:
        node.replace_all_uses_with(same)
    else:
        held = program.new_constant(node, scale.float(), node)
        _restore_type(program, replace(program, node, fake_quantize, (x, held, kind)), x)
    program.graph.erase_node(node)
    return True


def _rounded_already(
    program: Program, x: fx.Node, scale: torch.Tensor, kind: str
) -> fx.Node | None:
    """Return what rounds a value by this scale: one quantize may have several dequantizes."""
    for user in x.users:
        if user.target == fake_quantize and user.args[0] is x and user.args[2] == kind:
            held = program.constant(user.args[1])  # type: ignore[arg-type]
            if held is not None and torch.equal(held, scale.float()):
                return user
    return None


_BASE = "quantized_decomposed.dequantize_per_"
_DEQUANTIZE = (f"{_BASE}tensor", f"{_BASE}channel", f"{_BASE}channel_group")


def _scale_and_zero_point(
    program: Program, call: Call
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return what codes are multiplied with, as ``dequantize`` has it, and what is subtracted."""
    given = call.arguments
    found: list[torch.Tensor | None] = []
    shape = call.values["input"].shape
    for name in ("scale", "zero_point"):
        key = name if name in given else f"{name}s"
        value = constant_value(program, given[key])
        if value is None and given[key] is not None:
            return None, None
        if value is not None and "axis" in given:
            axis = given["axis"] % len(shape)
            value = value.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        elif value is not None and value.numel() == 1 and "group_size" not in given:
            value = value.reshape(())
        found.append(value)
    return found[0], found[1]


def _name_constant(
    program: Program,
    call: Call,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
) -> bool:
    node, low, high = call.node, call.arguments.get("quant_min"), call.arguments.get("quant_max")
    bits = 4 if low is not None and low >= -8 and high is not None and high <= 7 else 8
    if zero_point is not None and "group_size" in call.arguments:
        zero_point = zero_point.repeat_interleave(call.arguments["group_size"], dim=-1)
    dtype = node.meta["val"].dtype
    new = add_dequantize(program, node, codes, zero_point, scale, dtype, bits)
    if new is None:
        return _refuse(node, f"has {_asymmetry(zero_point)}: {_SYMMETRIC}; {_CURE}")
    node.replace_all_uses_with(new)
    program.graph.erase_node(node)
    return True


_SYMMETRIC = "TensorRT takes symmetric quantization only"


def _asymmetry(zero_point: torch.Tensor | None) -> str:
    if zero_point is None or not bool(zero_point.any()):
        return "codes or scales that are not symmetric"
    met = zero_point.flatten()[zero_point.flatten().abs().argmax()].item()
    return f"zero point {met:g}"


def _refusal(call: Call, scale: torch.Tensor, zero_point: torch.Tensor | None) -> str | None:
    """Return why a value that is computed at run time cannot be rounded like this."""
    if zero_point is not None and bool(zero_point.any()):
        return f"has {_asymmetry(zero_point)}: {_SYMMETRIC}; {_CURE}"
    if call.arguments["dtype"] == torch.float8_e4m3fn:
        return None
    low, high = call.arguments["quant_min"], call.arguments["quant_max"]
    if (low, high) not in ((-128, 127), (-127, 127)):
        return f"has the range {low} to {high}: TensorRT rounds values to -128 to 127; {_CURE}"
    if not bool((scale > 0).all()) or not bool(scale.isfinite().all()):
        return f"has the scale {scale.item():g}, and TensorRT takes positive ones"
    return None


def _restore_type(program: Program, new: fx.Node, x: fx.Node) -> None:
    """Cast a rounded value where the op behind it gave another type than its input has."""
    wanted, made = new.meta["val"].dtype, x.meta["val"].dtype
    if wanted == made:
        return
    with program.graph.inserting_after(new):
        cast = program.graph.call_function(aten._to_copy.default, (new,), {"dtype": wanted})
    cast.meta = dict(new.meta)
    new.replace_all_uses_with(cast, lambda user: user is not cast)
    new.meta["val"] = new.meta["val"].to(made)


@rule(steps=True)
def name_simulated(program: Program, node: fx.Node) -> bool:
    """tensorrt::quantize_op(x, amax, 8, ...) of ModelOpt   becomes   fake_quantize or dequantize.

    PyTorch's own ``fake_quantize_per_tensor_affine`` and ``fake_quantize_per_channel_affine`` too.
    """
    if _is(node, "tensorrt.quantize_op"):
        return _name_modelopt(program, node)
    if not _is(node, *_SIMULATED):
        return False
    used = [user for user in node.users if user.args[1] == 0]  # the other result is for gradients
    return len(used) == len(node.users) == 1 and _name_affine(program, node, used[0])


_SIMULATED = (
    "aten.fake_quantize_per_tensor_affine_cachemask",
    "aten.fake_quantize_per_channel_affine_cachemask",
)


def _name_modelopt(program: Program, node: fx.Node) -> bool:
    x, amax, bits, exponent, unsigned, *_ = node.args
    largest = constant_value(program, amax)
    if largest is None:
        return _refuse(node, DYNAMIC)
    kinds: dict[tuple[Any, Any], str] = {(8, 0): "int8", (4, 0): "int4", (8, 4): "fp8"}
    kind = kinds.get((bits, exponent))
    if kind is None or unsigned:
        sign = "unsigned " if unsigned else ""
        return _refuse(node, f"rounds to {sign}{bits} bits, {exponent} of exponent")
    scale = largest.float() / KINDS[kind].largest
    return _put_rounded(program, node, x, scale.reshape(()) if scale.numel() == 1 else scale, kind)


def _name_affine(program: Program, node: fx.Node, result: fx.Node) -> bool:
    call = Call.of(node)
    given = call.arguments
    scale, zero_point = (constant_value(program, given[key]) for key in ("scale", "zero_point"))
    if scale is None or zero_point is None:
        return _refuse(node, DYNAMIC)
    low, high = given["quant_min"], given["quant_max"]
    if bool(zero_point.any()):
        return _refuse(node, f"has {_asymmetry(zero_point)}: {_SYMMETRIC}; {_CURE}")
    kind = "int4" if (low, high) == (-8, 7) else "int8"
    if kind == "int8" and (low, high) not in ((-128, 127), (-127, 127)):
        return _refuse(node, f"has the range {low} to {high}: TensorRT has -128 to 127")
    if "axis" in given:
        rank = call.values["self"].ndim
        axis = given["axis"] % rank
        scale = scale.reshape([-1 if place == axis else 1 for place in range(rank)])
    elif scale.numel() == 1:
        scale = scale.reshape(())
    return _put_rounded(program, result, given["self"], scale, kind)


def _put_rounded(program: Program, node: fx.Node, x: Any, scale: torch.Tensor, kind: str) -> bool:
    """Round a constant now, and what is computed at run time by one scale, in a node's place."""
    if not bool((scale > 0).all()) or not math.isfinite(float(scale.max())):
        return _refuse(node, "has a scale that is not positive")
    value = constant_value(program, x)
    if value is not None:
        codes = codes_of(value, scale, kind)
        bits = KINDS[kind].bits
        new = add_dequantize(program, node, codes, None, scale, node.meta["val"].dtype, bits)
        assert new is not None
        node.replace_all_uses_with(new)
    elif scale.ndim or kind == "int4":
        met = "by channel or block" if scale.ndim else "to 4 bits"
        return _refuse(node, f"rounds a run-time value {met}: TensorRT does so to weights")
    else:
        replace(program, node, fake_quantize, (x, program.new_constant(node, scale, node), kind))
    program.graph.erase_node(node)
    return True


@rule(steps=True)
def round_constant(program: Program, node: fx.Node) -> bool:
    """fake_quantize of a constant   becomes   dequantize of its codes."""
    if node.target != fake_quantize or constant_value(program, node.args[0]) is None:
        return False
    x, held, kind = node.args
    scale = constant_value(program, held)
    return scale is not None and _put_rounded(program, node, x, scale, str(kind))
