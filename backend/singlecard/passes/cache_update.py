"""A key-value cache that is written in place, recognized where a model keeps one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.network.versions import has_cache_update
from singlecard.passes.rule import is_call, only_user, replace, rule, shape_of

aten = torch.ops.aten


@rule()
def name_cache_update(program: Program, node: fx.Node) -> bool:
    """Let new keys or values be written into the cache's own memory.

    Before:  cache (an input) -> index_copy(2, index, update) -> written back to cache
    After:   cache (an input) -> singlecard::update_cache(update, start) -> written back to cache

    The index is one place, or ``start + [0, 1, 2, ...]``. PyTorch lets no index of ``index_copy``
    be negative, so the start is the first place. Nothing else may read the cache as it was.
    """
    if not has_cache_update() or not is_call(node, aten.index_copy.default):
        return False
    cache, dim, index, update = node.args
    if not isinstance(cache, fx.Node) or not isinstance(dim, int):
        return False
    if len(shape_of(cache)) != 4 or dim % 4 != 2 or not cache.meta["val"].is_floating_point():
        return False
    if not all(isinstance(size, int) for size in shape_of(cache)[1:]):
        return False  # the layer takes a cache of known length
    if not is_written_back(program, node, cache) or only_user(cache) is not node:
        return False
    if shape_of(update)[:2] != shape_of(cache)[:2]:  # type: ignore[arg-type]
        return False
    start = _first_of(program, index)
    if start is None:
        return False
    replace(program, node, ops.update_cache, (cache, update, start))
    program.graph.erase_node(node)
    return True


def is_written_back(program: Program, value: fx.Node, place: fx.Node) -> bool:
    """Tell whether a value becomes the new content of the input ``place``."""
    if place.op != "placeholder":
        return False
    inputs = dict(zip(program.placeholders, program.positions, strict=True))
    first = len(program.results)
    written = zip(program.mutations, program.outputs[first:], strict=False)
    return any(at == inputs[place] and item is value for at, item in written)


def _first_of(program: Program, index: Any) -> fx.Node | None:
    """Return the node of the first place, where an index counts up from it."""
    if not isinstance(index, fx.Node):
        return None
    if index.meta["val"].numel() == 1:
        return index
    if not is_call(index, aten.add.Tensor) or index.kwargs:
        return None
    for start, count in (index.args, index.args[::-1]):
        if not isinstance(start, fx.Node) or start.meta["val"].numel() != 1:
            continue
        if _counts_from_zero(program, count, index):
            return start
    return None


def _counts_from_zero(program: Program, node: Any, whole: fx.Node) -> bool:
    constant = program.constant(node)
    if constant is not None:
        return constant.ndim == 1 and bool(
            torch.equal(constant.cpu().long(), torch.arange(constant.numel()))
        )
    if not statically_known_true(shape_of(node)[0] == shape_of(whole)[0]):
        return False
    if is_call(node, aten.arange.default):
        return len(node.args) == 1
    if is_call(node, aten.arange.start_step):
        return node.args[0] == 0 and (len(node.args) < 3 or node.args[2] == 1)
    if is_call(node, torch.ops.prims.iota.default):
        return bool(node.kwargs.get("start", 0) == 0 and node.kwargs.get("step", 1) == 1)
    return False
