"""Constant folding: what depends on frozen values only is computed once, on the CPU.

Quantized weights stay codes: what makes them floating point again is left to the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.layouts import compute, promised, restrided
from singlecard.capture.program import Program
from singlecard.capture.quantized import dequantize, fake_quantize
from singlecard.host_memory import on_cpu
from singlecard.lowering.call import tensors_in

aten = torch.ops.aten

#: A result up to this size is folded whatever it came from.
_ALWAYS_BYTES = 1 << 20


#: What gives codes their meaning: folded, a quantized weight would be a large one again. Named, for
#: the libraries that define these ops may not be there.
_DEQUANTIZE = (
    str(dequantize),
    str(fake_quantize),
    "quantized_decomposed.dequantize_",
    "torchao.dequantize_",
)

#: Whose ops are computed ahead of time. Another's kernel may be there on the card alone.
_FOLDED = ("aten", "prims", "singlecard", "quantized_decomposed", "torchao")

_RANDOM = torch.Tag.nondeterministic_seeded


def _bytes(value: torch.Tensor) -> int:
    """Memory that a tensor really takes: extents that are only broadcast count once."""
    count = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        count *= int(size) if stride else 1
    return count * value.element_size()


def _is_foldable(node: fx.Node, folded: dict[fx.Node, Any]) -> bool:
    target = node.target
    if node.op != "call_function" or any(arg not in folded for arg in node.all_input_nodes):
        return False
    if isinstance(target, torch._ops.OpOverload):
        if _RANDOM in target.tags or target._schema.is_mutable:
            return False
        if target.namespace not in _FOLDED:
            return False
        if str(target).startswith(_DEQUANTIZE):
            return False
    elif getattr(target, "__name__", "") != "getitem":
        return False
    results = list(tensors_in(node.meta.get("val")))
    if not results or any(
        isinstance(size, torch.SymInt) for result in results for size in result.shape
    ):
        return False
    inputs = sum(_bytes(value) for arg in node.all_input_nodes for value in tensors_in(folded[arg]))
    return all(_bytes(result) <= max(_ALWAYS_BYTES, 2 * inputs) for result in results)


def _evaluate(node: fx.Node, folded: dict[fx.Node, Any]) -> Any:
    strides = iter(promised(node))

    def value_of(arg: fx.Node) -> Any:
        value, wanted = _here(folded[arg]), next(strides, None)
        return value if wanted is None else restrided(value, wanted, from_start=True)

    args = fx.map_arg(node.args, value_of)
    return compute(node.target, args, fx.map_arg(node.kwargs, value_of))


def _here(value: Any) -> Any:
    """Return what ops compute with: on the CPU, so that the same is computed on every machine."""
    return on_cpu(value) if isinstance(value, torch.Tensor) else value


def _computed(program: Program, node: fx.Node, folded: dict[fx.Node, Any]) -> Any:
    """Let the Program hold what is computed; a view stays one of what it is a view of."""
    if node.target is aten._to_copy.default and node.kwargs.keys() == {"dtype"}:
        (source,) = node.all_input_nodes
        return program.convert(_here(folded[source]), node.kwargs["dtype"])  # type: ignore[arg-type]
    made = _evaluate(node, folded)
    if type(made) is not torch.Tensor or made.layout is not torch.strided:
        return made
    memory = made.untyped_storage().data_ptr()
    for arg in node.all_input_nodes:
        for value in tensors_in(folded[arg]):
            if value.layout is torch.strided and value.untyped_storage().data_ptr() == memory:
                return made
    return program.hold(made)


@torch.no_grad()
def fold_constants(program: Program) -> None:
    """Replace ops on constants by their results; frozen weights themselves are never copied."""
    folded: dict[fx.Node, Any] = {}
    for node in list(program.graph.nodes):
        if node.op == "get_attr":
            value = program.constant(node)
            assert value is not None
            folded[node] = value
        elif _is_foldable(node, folded):
            folded[node] = _computed(program, node, folded)
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node not in folded:
            continue
        if not isinstance(folded[node], torch.Tensor):
            continue  # a tuple: its items are folded themselves
        if all(user in folded for user in node.users):
            continue  # nothing at run time needs it
        constant = program.new_constant(node, folded[node], node)
        node.replace_all_uses_with(constant, lambda user: user not in folded)
        program.trace.append(f"fold_constants at {node.name}")
    program.drop_dead()
    _drop_unused(program)


def _drop_unused(program: Program) -> None:
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name in list(program.module._buffers):
        if name not in used:
            delattr(program.module, name)
