"""The digest of a graph as Dynamo hands it over, with all that decides what becomes of it.

Equal digests mean: the same ops on the same types, shapes, ranges and weights, captured by the same
PyTorch in the same state. Whatever cannot be told apart with certainty, such as a function from
outside of PyTorch or a subclass of tensors, has no digest, and takes the long way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import blake3
import torch
from torch import fx

from singlecard.capture.aot import is_frozen
from singlecard.hashing import hasher_for
from singlecard.host_memory import on_cpu

#: Modules whose functions are as old as PyTorch's version says.
_PYTORCH = ("torch", "_operator", "builtins", "math")

#: Namespaces of PyTorch's own ops.
_NAMESPACES = ("aten", "prims")

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class NotComparable(Exception):
    """A graph holds something that two captures cannot be compared by."""


def fingerprint(module: fx.GraphModule, examples: Sequence[Any]) -> str | None:
    """Return the digest of a graph, its weights and PyTorch's state; None where it has none."""
    try:
        parts = [*_state(), *_arguments(module, examples), *_guards(module), *_nodes(module)]
    except NotComparable:
        return None
    return blake3.blake3("\n".join(parts).encode()).hexdigest()


def digest_of(value: torch.Tensor) -> str:
    """Return the digest of a tensor's elements, in their order."""
    data = on_cpu(value).contiguous().reshape(-1).view(torch.uint8).numpy().data
    hasher = hasher_for(data.nbytes)
    hasher.update(data)
    return hasher.hexdigest()


def _state() -> Iterator[str]:
    """Yield what PyTorch's way with a graph depends on beside the graph."""
    backends = torch.backends
    yield repr(
        (
            torch.__version__,
            torch.version.git_version,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            [
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                for kind in ("cpu", "cuda")
            ],
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch._C._get_mkldnn_enabled(),
            torch._C._get_nnpack_enabled(),
            backends.cudnn.enabled,
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        )
    )


def _arguments(module: fx.GraphModule, examples: Sequence[Any]) -> Iterator[str]:
    seen: dict[int, int] = {}
    memory: dict[int, int] = {}
    placeholders = module.graph.find_nodes(op="placeholder")
    for place, (node, example) in enumerate(zip(placeholders, examples, strict=True)):
        value = node.meta.get("example_value", example)
        if not isinstance(example, torch.Tensor):
            yield f"{place} {type(example).__name__} {_size(value)}"
            continue
        if type(example) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise NotComparable(type(example))
        if example.layout is not torch.strided or example.is_conj() or example.is_neg():
            raise NotComparable("a tensor of another layout")
        if seen.setdefault(id(example), place) != place:
            raise NotComparable("one tensor twice")
        storage = example.untyped_storage()._cdata
        frozen = is_frozen(node, example)
        yield repr(
            (
                place,
                type(example).__name__,
                example.dtype,
                example.device,
                [_size(size) for size in value.shape],
                [_size(size) for size in value.stride()],
                _size(value.storage_offset()),
                example.requires_grad,
                memory.setdefault(storage, place),
                digest_of(example) if frozen else "",
            )
        )


def _guards(module: fx.GraphModule) -> Iterator[str]:
    """Yield what Python asked of sizes on the way: ranges of engines follow from it."""
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt):
                yield from (str(guard.expr) for guard in size.node.shape_env.guards)
                return


def _size(value: Any) -> str:
    """Return a size with all that is known of its symbols."""
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        if isinstance(value, _PLAIN):
            return repr(value)
        raise NotComparable(type(value))
    shapes = value.node.shape_env
    known = [
        (str(symbol), str(shapes.var_to_range.get(symbol)), str(value.node.hint))
        for symbol in sorted(value.node.expr.free_symbols, key=str)
    ]
    return f"{value.node.expr} {known}"


def _nodes(module: fx.GraphModule) -> Iterator[str]:
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        raise NotComparable("weights inside of the graph")
    numbers: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        numbers[node] = len(numbers)
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            value = getattr(module, str(node.target), None)
            if type(value) is not torch.Tensor:
                raise NotComparable(type(value))
            target = f"{value.dtype} {tuple(value.shape)} {value.stride()} {digest_of(value)}"
        elif node.op == "call_function":
            target = _function(node.target)
        elif node.op in ("call_method", "output"):
            target = str(node.target)
        else:
            raise NotComparable(node.op)
        yield f"{node.op} {target} {_plain(node.args, numbers)} {_plain(node.kwargs, numbers)}"


def _function(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace in _NAMESPACES:
            return str(target)
    elif not isinstance(target, torch._ops.OperatorBase):
        origin, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
        if origin and name and origin.partition(".")[0] in _PYTORCH and "<" not in name:
            return f"{origin}.{name}"
        for name, function in vars(torch.nn.functional).items():
            if function is target:  # such as max_pool2d, which is made by another function
                return f"torch.nn.functional.{name}"
    raise NotComparable(target)


def _plain(value: Any, numbers: Mapping[fx.Node, int]) -> str:
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, (list, tuple)):
        items = ", ".join(_plain(item, numbers) for item in value)
        return f"{type(value).__name__}({items})"
    if isinstance(value, dict):
        return repr([(str(key), _plain(item, numbers)) for key, item in value.items()])
    if isinstance(value, slice):
        return f"slice({_plain((value.start, value.stop, value.step), numbers)})"
    if isinstance(value, (*_PLAIN, torch.layout, torch.memory_format)) or value is Ellipsis:
        return repr(value)
    raise NotComparable(type(value))
