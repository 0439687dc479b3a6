"""Which op a network is refused for: it alone stays in PyTorch, its neighbours keep their engine.

TensorRT's words name a layer, and layers carry the op that they were made for. Where the words name
no layer, or several, the shortest beginning of the segment that does not build ends with the op:
halving finds it in a number of builds that grows with the logarithm of the number of ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.engine.build import key_digest
from singlecard.lowering.lower import Lowered
from singlecard.partition import Segment

#: Builds of one graph, at most, that look for the ops TensorRT refuses: those that fail, and those
#: of a part of a segment that find out why. Beyond it, the segment stays in PyTorch as a whole.
BUILDS = 32


@dataclass
class Budget:
    """How many builds are left to look for refused ops in one graph."""

    left: int = BUILDS

    def take(self) -> bool:
        """Take one; return whether there was one."""
        self.left -= 1
        return self.left >= 0


def named_nodes(lowered: Lowered, words: str) -> list[fx.Node]:
    """Return the nodes whose layers are named in TensorRT's words.

    A name that is part of a longer one, as ``a/add`` of ``a/add.1``, counts where it stands alone.
    """
    names = sorted(lowered.makers_by_layer().items(), key=lambda item: -len(item[0]))
    found: dict[fx.Node, None] = {}
    for name, node in names:
        if name and name in words:
            found[node] = None
            words = words.replace(name, " ")
    return list(found)


def first_refused(
    segment: Segment, builds: Callable[[int], bool], budget: Budget
) -> fx.Node | None:
    """Return the op with which the shortest beginning that does not build ends.

    Args:
        segment: does not build.
        builds: tells whether so many of its first ops do.
        budget: of builds; None is returned where it does not last.
    """
    low, high = 0, len(segment.nodes)  # the first `low` ops build, the first `high` do not
    while high - low > 1:
        if not budget.take():
            return None
        middle = (low + high) // 2
        if builds(middle):
            low = middle
        else:
            high = middle
    return segment.nodes[low]


def alike(node: fx.Node, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes with the same op on the same types and shapes: these are refused as well.

    A model repeats its layers, and each of them would cost another build that fails.
    """
    wanted = _form(node)
    return [other for other in nodes if other is node or _form(other) == wanted]


def _form(node: fx.Node) -> Any:
    return node.target, _described(node.args), _described(node.kwargs), _value(node.meta.get("val"))


def _described(arg: Any) -> str:
    described = fx.node.map_aggregate(
        arg,
        lambda item: (
            (item.op == "get_attr", _value(item.meta.get("val")))
            if isinstance(item, fx.Node)
            else item
        ),
    )
    return repr(described)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return repr([_value(item) for item in value])
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return repr(value)


def refusal_digest(parts: Mapping[str, str]) -> str:
    """Return the digest under which is remembered what a network was refused for."""
    return key_digest({**parts, "kept": "refusal"})
