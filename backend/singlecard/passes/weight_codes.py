"""Quantized weights that a graph makes floating point by plain arithmetic become codes and scales.

Tensor subclasses such as torchao's leave no op of their own behind: AOTAutograd shows what they do
to the tensors that they hold. Folded, a weight of 8 or 4 bits would be 32 bits wide again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from singlecard.capture.layouts import compute
from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.quantized import dequantize
from singlecard.passes.rule import is_call, is_node, only_user, replace, rule, shape_of

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_PRODUCTS = (aten.mm.default, aten.addmm.default)
_INTEGERS = (torch.int8, torch.uint8, torch.int32)

#: Rows of INT4 must be a multiple of this long, for a product to read the codes themselves.
_BLOCK = 32


def constant_value(program: Program, node: Any) -> torch.Tensor | None:
    """Return the value of a node that follows from constants alone, or None."""
    if isinstance(node, (int, float)):
        return torch.tensor(node)
    if not isinstance(node, fx.Node) or not _is_constant(program, node):
        return None
    found: dict[fx.Node, torch.Tensor] = {}
    waiting = [node]
    while waiting:
        missing = [arg for arg in waiting[-1].all_input_nodes if arg not in found]
        if missing:
            waiting += missing
            continue
        item = waiting.pop()
        if item not in found:
            found[item] = _computed(program, item, found)
    return found[node]


def _computed(
    program: Program, node: fx.Node, found: Mapping[fx.Node, torch.Tensor]
) -> torch.Tensor:
    value = program.constant(node)
    if value is not None:
        return value.detach().to("cpu")
    args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
    with torch.no_grad():
        result: torch.Tensor = compute(node.target, args, kwargs)
    return result


def _is_constant(program: Program, node: fx.Node) -> bool:
    """Tell whether a node follows from constants alone.

    Each node is looked into once for all that ask, and not by recursion: residual additions reach
    what lies before them by 2^n ways, and a deep model is deeper than Python's stack.
    """
    known = program.constness
    waiting = [node]
    while waiting:
        item = waiting[-1]
        if item in known:
            waiting.pop()
            continue
        args = item.all_input_nodes if _is_computed(item) else []
        if not args or any(known.get(arg) is False for arg in args):
            known[item] = item.op == "get_attr"
        elif missing := next((arg for arg in args if arg not in known), None):
            waiting.append(missing)
        else:
            known[item] = True
    return known[node]


def _is_computed(node: fx.Node) -> bool:
    """Tell whether a node has the same value whenever it is computed of the same inputs."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
        and isinstance(node.meta.get("val"), torch.Tensor)
    )


def add_dequantize(
    program: Program,
    before: fx.Node,
    codes: torch.Tensor,
    zero_point: torch.Tensor | None,
    scale: torch.Tensor,
    dtype: torch.dtype,
    bits: int | None = None,
) -> fx.Node | None:
    """Put a constant's codes in front of a node, or return None where they have no symmetric form.

    Args:
        program: what ``before`` belongs to.
        before: lends its module path and device.
        codes: integers or float8_e4m3fn.
        zero_point: what is subtracted from them, of a shape that broadcasts, or None.
        scale: no dimensions, or as many as the codes; see `singlecard.capture.quantized`.
        dtype: of the result.
        bits: 4 or 8, or None where the codes themselves tell.
    """
    if codes.dtype == torch.float8_e4m3fn:
        kind = "fp8"
        if zero_point is not None and bool(zero_point.any()):
            return None
    elif codes.dtype in _INTEGERS:
        if zero_point is not None and bool(zero_point.any()):
            codes = codes.to(torch.int32) - zero_point.round().to(torch.int32)
        low, high = (int(limit) for limit in codes.aminmax())
        narrow = -8 <= low and high <= 7 and codes.ndim == 2 and codes.shape[1] % _BLOCK == 0
        if low < -128 or high > 127:
            return None
        kind = "int4" if narrow and bits != 8 else "int8"
        codes = codes.to(torch.int8)
    else:
        return None
    scale = scale.float()
    if not bool((scale > 0).all()):
        return None
    held = program.new_constant(before, codes.contiguous(), before)
    scales = program.new_constant(before, scale.contiguous(), before)
    return _call(program, before, dequantize, (held, scales, kind, dtype))


@rule(rounds=True)
def name_weight_codes(program: Program, node: fx.Node) -> bool:
    """mul(sub(float(q), z), s)   becomes   dequantize(q - z, s).

    Blocks of a row, [N, blocks, elements] that are viewed as [N, K] behind, become scales [N,
    blocks]; what is written transposed, for a product with [K, N], is turned.
    """
    if not is_call(node, aten.mul.Tensor) or not node.meta["val"].is_floating_point():
        return False
    for a, b in (node.args, node.args[::-1]):
        found = _codes_and_zero_point(program, a)
        if found is None:
            continue
        codes, zero_point = found
        scale = constant_value(program, b)
        if scale is None or tuple(codes.shape) != shape_of(node):
            continue
        if _put(program, node, codes, zero_point, scale):
            return True
    return False


def _codes_and_zero_point(
    program: Program, node: Any
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return q and z of ``float(q) - z``, both constant."""
    if not is_call(node, aten.sub.Tensor) or node.kwargs:
        codes = _widened(program, node)
        return None if codes is None else (codes, None)
    codes = _widened(program, node.args[0])
    zero_point = None if codes is None else constant_value(program, node.args[1])
    if codes is None or zero_point is None or bool((zero_point.round() != zero_point).any()):
        return None
    return codes, zero_point


def _widened(program: Program, node: Any) -> torch.Tensor | None:
    """Return constant codes that a node makes floating point, or None."""
    if not is_call(node, aten._to_copy.default) or not node.meta["val"].is_floating_point():
        return None
    if not is_node(node.args[0]):
        return None  # PyTorch's `vmap` makes tensors of numbers so
    kind = node.args[0].meta["val"].dtype
    if kind not in (*_INTEGERS, torch.float8_e4m3fn):
        return None
    return constant_value(program, node.args[0])


def _put(
    program: Program,
    node: fx.Node,
    codes: torch.Tensor,
    zero_point: torch.Tensor | None,
    scale: torch.Tensor,
) -> bool:
    last, dtype = node, node.meta["val"].dtype
    scale = _ranked(scale, codes.ndim)
    if zero_point is not None:
        zero_point = _ranked(zero_point, codes.ndim).expand(codes.shape)
    if codes.ndim == 3 and scale.ndim and scale.shape[2] == 1:
        after = only_user(node)
        rows, blocks, size = codes.shape
        if after is None or not is_call(after, *_VIEWS) or shape_of(after) != (rows, blocks * size):
            return False
        last, codes, scale = after, codes.reshape(rows, -1), scale.squeeze(2)
        zero_point = None if zero_point is None else zero_point.reshape(rows, -1)
    turned = codes.ndim == 2 and all(_is_second(user, last) for user in last.users)
    if turned:
        codes, zero_point = codes.t(), None if zero_point is None else zero_point.t()
        scale = scale.t() if scale.ndim else scale
    new = add_dequantize(program, last, codes, zero_point, scale, dtype)
    if new is None:
        return False
    if turned:
        new = _call(program, last, aten.t.default, (new,))
    last.replace_all_uses_with(new)
    for old in dict.fromkeys((last, node)):
        program.graph.erase_node(old)
    return True


def _ranked(value: torch.Tensor, ndim: int) -> torch.Tensor:
    """Give a tensor that broadcasts the rank that it broadcasts to; one number has none."""
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape(*[1] * (ndim - value.ndim), *value.shape)


def _is_second(user: fx.Node, weight: fx.Node) -> bool:
    """Tell whether a value is used as the second matrix of a product, and as nothing else."""
    return is_call(user, *_PRODUCTS) and user.args[-1] is weight and user.args[-2] is not weight


@rule(rounds=True)
def name_scaled_product(program: Program, node: fx.Node) -> bool:
    """mul(mm(x, float(t(q))), s[N])   becomes   mm(x, t(dequantize(q, s[N, 1]))).

    So that products of codes with FP16 values do not leave FP16's range, which their scale comes
    too late for.
    """
    if not is_call(node, aten.mm.default):
        return False
    x, weight = node.args
    codes, scaled = _widened(program, weight), only_user(node)
    if codes is None or scaled is None or not is_call(scaled, aten.mul.Tensor):
        return False
    other = scaled.args[1] if scaled.args[0] is node else scaled.args[0]
    scale = constant_value(program, other)
    if scale is None or scale.numel() not in (1, codes.shape[1]) or scaled.args[0] is other:
        return False
    if scale.numel() > 1 and (scale.shape[-1] != codes.shape[1] or scale.ndim > 2):
        return False
    scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
    dtype = node.meta["val"].dtype
    new = add_dequantize(program, node, codes.t(), None, scale, dtype)
    if new is None:
        return False
    turned = _call(program, node, aten.t.default, (new,))
    replace(program, scaled, aten.mm.default, (x, turned))
    program.graph.erase_node(scaled)
    program.graph.erase_node(node)
    return True


@rule()
def join_bias(program: Program, node: fx.Node) -> bool:
    """add(linear(x, dequantize(q, s)), b)   becomes   linear(x, dequantize(q, s), b).

    Rules on the biases of attention know them there.
    """
    if not is_call(node, aten.add.Tensor) or node.kwargs:
        return False
    product: Any = node.args[0]
    bias: Any = node.args[1]
    if not is_call(product, aten.linear.default) or only_user(product) is not node:
        return False
    x, weight, *rest = product.args
    if not is_call(weight, dequantize) or any(item is not None for item in rest):
        return False
    if program.constant(bias) is None or shape_of(bias) != shape_of(node)[-1:]:
        return False
    if bias.meta["val"].dtype != node.meta["val"].dtype or shape_of(product) != shape_of(node):
        return False
    replace(program, node, aten.linear.default, (x, weight, bias))
    program.graph.erase_node(node)
    program.graph.erase_node(product)
    return True


@rule(rounds=True)
def name_packed_product(program: Program, node: fx.Node) -> bool:
    """_weight_int8pack_mm(x, q, s)   becomes   linear(x, dequantize(q, s[N, 1]))."""
    if not is_call(node, aten._weight_int8pack_mm.default):
        return False
    x, weight, scales = node.args
    codes, scale = constant_value(program, weight), constant_value(program, scales)
    if codes is None or scale is None:
        return False
    dtype = node.meta["val"].dtype
    new = add_dequantize(program, node, codes, None, scale.reshape(-1, 1), dtype, 8)
    if new is None:
        return False
    replace(program, node, aten.linear.default, (x, new))
    program.graph.erase_node(node)
    return True


def _call(program: Program, before: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    with program.graph.inserting_before(before):
        new = program.graph.call_function(target, args)
    new.meta = {key: item for key, item in before.meta.items() if key in PATH_KEYS}
    with before.meta["val"].fake_mode:
        new.meta["val"] = target(*fx.map_arg(args, lambda arg: arg.meta["val"]))
    return new
