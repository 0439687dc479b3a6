"""How tensors lie in memory, where callers and ops of PyTorch's can see it.

An engine takes and gives values. Most ops of PyTorch's ask for no more either, and answer alike
however their arguments lie. Others go by strides and addresses: kernels of the user's own, ops that
run other graphs, looks at memory by strides, packed weights. What they get in eager PyTorch is
noted when a graph is captured, before any rewrite, and given to them whatever was rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from singlecard.capture.opaque import Opaque
from singlecard.capture.symbols import symbols_in

aten = torch.ops.aten

#: Key of a node's metadata: for each tensor among its arguments, how eager PyTorch lays it out.
PROMISE = "eager_layouts"

#: Namespaces whose ops answer alike however their arguments lie; below are the exceptions.
_BY_VALUE = frozenset({"aten", "prims", "singlecard"})

#: Ops that look at memory by strides counted from its start.
OF_MEMORY = frozenset(
    {
        aten.as_strided.default,
        aten.as_strided_copy.default,
        aten.as_strided_scatter.default,
        aten.view.dtype,
    }
)

#: Other ATen ops whose kernels go by strides, or refuse what eager PyTorch would not give them.
_BY_ADDRESS = frozenset(
    f"aten::{name}"
    for name in (
        "_cslt_sparse_mm",
        "_cudnn_rnn",
        "_efficient_attention_forward",
        "_flash_attention_forward",
        "_grouped_mm",
        "_int_mm",
        "_mixed_dtypes_linear",
        "_nested_view_from_buffer_copy",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_grouped_mm",
        "_scaled_mm",
        "_weight_int4pack_mm",
        "_weight_int4pack_mm_for_cpu",
        "_weight_int8pack_mm",
        "_wrapped_quantized_linear_prepacked",
        "miopen_rnn",
        "mkldnn_rnn_layer",
        "view_as_complex",
    )
)

#: ATen ops whose kernels refuse, or misread, an argument that is not contiguous. Graphs have a copy
#: in front of them, which engines have no use for; where PyTorch runs the op, it is made again.
CONTIGUOUS = frozenset(
    {
        aten._embedding_bag.default,
        aten._embedding_bag_forward_only.default,
        aten._pdist_forward.default,
        aten.native_group_norm.default,
    }
)

#: Looks at memory that fail where a copy in front of them was dropped; a reshape does not.
VIEWS = (aten.view.default, aten._unsafe_view.default)


def compute(target: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Call an op on the CPU, on values that may lie otherwise than in eager PyTorch.

    Passes drop the copies that graphs have in front of some ops.
    """
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    if target in VIEWS:
        target = aten.reshape.default
    elif target in CONTIGUOUS:
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, (args, kwargs))
    return target(*args, **kwargs)


def reads_memory(target: Any) -> bool:
    """Tell whether an op's answer may depend on how its arguments lie in memory."""
    if _runs_others(target):
        return True  # runs kernels, or graphs that were traced with the strides of their arguments
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.namespace in _BY_VALUE:
        return target in OF_MEMORY or target._schema.name in _BY_ADDRESS
    return torch.Tag.flexible_layout not in target.tags


def _runs_others(target: Any) -> bool:
    return isinstance(target, (torch._ops.HigherOrderOperator, Opaque))


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory.

    Attributes:
        order: its axes from the outermost in memory to the innermost.
        broadcast: axes whose elements are one and the same in memory.
        strides: elements to step for each axis, where all sizes are known numbers and nothing lies
            between the tensor's elements.
    """

    order: tuple[int, ...]
    broadcast: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None


def layout_of(value: torch.Tensor) -> Layout | None:
    """Return how a fake tensor lies; None where it is contiguous, or its strides are not known.

    Gaps, as a slice leaves them, are no part of it.
    """
    sizes, strides = tuple(value.shape), tuple(value.stride())
    broadcast = _broadcast(sizes, strides)
    order = packed_order(sizes, strides)
    has_gaps = order is None
    if order is None:
        order = _by_hints(sizes, strides)
    if order is None:
        return None
    known = not has_gaps and all(isinstance(item, int) for item in (*sizes, *strides))
    if known and _is_empty(sizes):
        known, broadcast = False, ()
    exact = strides if known else None
    if order == tuple(range(value.ndim)) and not broadcast:
        if exact is None or exact == _contiguous(sizes):  # what is not known is not asked about
            return None
    return Layout(order, broadcast, exact)


def laid_out(value: torch.Tensor, layout: Layout | None) -> torch.Tensor:
    """Return a tensor in a layout: the same one where it lies so already."""
    if layout is None:
        return value.contiguous()
    if layout.strides is not None:
        return restrided(value, layout.strides)
    return packed(value, layout.order, layout.broadcast)


def packed(
    value: torch.Tensor, order: tuple[int, ...], broadcast: tuple[int, ...] = ()
) -> torch.Tensor:
    """Return a tensor whose axes lie in this order, without gaps."""
    whole = value.shape
    for axis in broadcast:
        value = value.narrow(axis, 0, 1)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    value = value.permute(order).contiguous().permute(inverse)
    return value.expand(whole) if broadcast else value


def restrided(
    value: torch.Tensor, strides: Sequence[int], from_start: bool = False
) -> torch.Tensor:
    """Return a tensor with these strides; ``from_start``: at the beginning of its memory."""
    strides = tuple(strides)
    moves = from_start and value.storage_offset() != 0
    if value.stride() == strides and not moves:
        return value
    whole = value.shape
    if not moves and all(
        size == 1 or now == then
        for size, now, then in zip(whole, value.stride(), strides, strict=True)
    ):
        return value.as_strided(whole, strides)
    if value.numel():
        for axis, (size, step) in enumerate(zip(whole, strides, strict=True)):
            if step == 0 and size != 1:
                value = value.narrow(axis, 0, 1)
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    made.copy_(value)
    return made if made.shape == whole else made.as_strided(whole, strides)


def promise_layouts(graph: fx.Graph) -> None:
    """Note for each op that reads memory the strides that eager PyTorch gives its arguments.

    Inputs of the graph come as they are.
    """
    for node in graph.nodes:
        if node.op == "call_function" and reads_memory(node.target):
            node.meta[PROMISE] = tuple(_strides(arg) for arg in arguments(node))


def promised(node: fx.Node) -> tuple[Any, ...]:
    """Return for each tensor among an op's arguments its strides in eager PyTorch, or None.

    Empty for an op that does not read memory.
    """
    return tuple(node.meta.get(PROMISE, ()))


def arguments(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among an op's arguments, in their order, as often as they stand there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def keep_promise(node: fx.Node, sources: Mapping[sympy.Symbol, Any]) -> None:
    """Lay out the arguments of an op that reads memory, in the graph that PyTorch will run.

    Args:
        node: the op.
        sources: values in that graph for the symbols in strides.
    """
    strides = iter(promised(node))
    from_start = node.target in OF_MEMORY or _runs_others(node.target)
    made: dict[tuple[fx.Node, str], fx.Node] = {}

    def lay(arg: fx.Node) -> fx.Node:
        wanted = next(strides, None)
        if wanted is None:
            return arg
        key = (arg, str(wanted))
        if key not in made:
            with node.graph.inserting_before(node):
                made[key] = _laid(arg, wanted, sources, from_start)
        return made[key]

    node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lay)


def _laid(
    arg: fx.Node, strides: Sequence[Any], sources: Mapping[sympy.Symbol, Any], from_start: bool
) -> fx.Node:
    call = arg.graph.call_function
    symbols = set(symbols_in(list(strides)))
    if not symbols:
        return call(restrided, (arg, tuple(map(int, strides)), from_start))
    sizes = tuple(arg.meta["val"].shape)
    broadcast = _broadcast(sizes, strides)
    order = packed_order(sizes, strides)
    if order is not None:
        return call(packed, (arg, order, broadcast))
    if symbols <= sources.keys():
        steps = tuple(_evaluated(step, sources) for step in strides)
        return call(restrided, (arg, steps, from_start))
    order = _by_hints(sizes, strides) or tuple(range(len(sizes)))
    return call(packed, (arg, order, broadcast))


def _evaluated(step: Any, sources: Mapping[sympy.Symbol, Any]) -> Any:
    if not isinstance(step, torch.SymInt):
        return step
    value = sympy_interp(PythonReferenceAnalysis, dict(sources), step.node.expr)
    return value.node if isinstance(value, fx.Proxy) else int(value)


def symbols_promised(nodes: Iterable[fx.Node]) -> list[sympy.Symbol]:
    """Return the symbols in strides that are promised to ops, and do not follow from the shape."""
    found = (
        symbol
        for node in nodes
        for arg, strides in zip(arguments(node), promised(node), strict=False)
        if strides is not None and packed_order(arg.meta["val"].shape, strides) is None
        for symbol in symbols_in(list(strides))
    )
    return list(dict.fromkeys(found))


def _strides(arg: fx.Node) -> tuple[Any, ...] | None:
    value = arg.meta.get("val")
    if arg.op == "placeholder" or not isinstance(value, torch.Tensor):
        return None
    return tuple(value.stride()) if value.layout is torch.strided else None


def _broadcast(sizes: Sequence[Any], strides: Sequence[Any]) -> tuple[int, ...]:
    return tuple(
        axis
        for axis, (size, step) in enumerate(zip(sizes, strides, strict=True))
        if isinstance(step, int) and step == 0 and not (isinstance(size, int) and size == 1)
    )


def packed_order(sizes: Sequence[Any], strides: Sequence[Any]) -> tuple[int, ...] | None:
    """Return the order of axes that lie without gaps; None where gaps are, or may be."""
    broadcast = _broadcast(sizes, strides)
    left = [axis for axis in range(len(sizes)) if axis not in broadcast]
    inner: list[int] = []
    step: Any = 1
    while left:
        fitting = [axis for axis in reversed(left) if statically_known_true(strides[axis] == step)]
        single = [axis for axis in reversed(left) if _is_one(sizes[axis])]
        # An axis of one element lies anywhere: where its stride says, or else at its place.
        axis = next((a for a in fitting if a in single), next(iter(fitting), None))
        if axis is None:
            axis = next(iter(single), None)
        if axis is None:
            return None
        left.remove(axis)
        inner.append(axis)
        step = step * sizes[axis]
    return _with_broadcast(inner[::-1], broadcast)


def _by_hints(sizes: Sequence[Any], strides: Sequence[Any]) -> tuple[int, ...] | None:
    """Return the order of axes in the example that was traced; None where it is not known."""
    broadcast = _broadcast(sizes, strides)
    steps, extents = [_hint(item) for item in strides], [_hint(item) for item in sizes]
    if None in steps or None in extents:
        return None
    # Axes of extent 1 lie anywhere: they keep their places.
    rest = [axis for axis in range(len(sizes)) if axis not in broadcast]
    moving = [axis for axis in rest if extents[axis] != 1]
    by_stride = iter(sorted(moving, key=lambda axis: -(steps[axis] or 0)))
    order = [axis if extents[axis] == 1 else next(by_stride) for axis in rest]
    return _with_broadcast(order, broadcast)


def _with_broadcast(order: Sequence[int], broadcast: Sequence[int]) -> tuple[int, ...]:
    """Put axes without an extent in memory back to their places among the others."""
    result = list(order)
    for axis in broadcast:
        result.insert(axis, axis)
    return tuple(result)


def _contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _is_empty(sizes: Sequence[Any]) -> bool:
    return any(isinstance(size, int) and size == 0 for size in sizes)


def _hint(size: Any) -> int | None:
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return None if hint is None else int(hint)
    return int(size)
