"""What a rewrite is: a named function over a Program, run from a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.symbols import same_extents
from singlecard.lowering.call import op_name

#: A rule looks at one node; it returns True where it changed the graph around it.
Rule = Callable[[Program, fx.Node], bool]


@dataclass(frozen=True)
class Exactness:
    """How far a rewrite may move an answer, as a share of the largest number in a result.

    Attributes:
        rounds: whether it makes new constants, which are rounded to the type that they have.
        steps: whether it rounds to the steps of a quantization, where a value may lie between two.
    """

    rounds: bool = False
    steps: bool = False


#: What a rewrite is that says the same in other words: equal in exact arithmetic.
EXACT = Exactness()
#: Constants are rounded, and nothing else changes.
ROUNDED = Exactness(rounds=True)


def rule(*, rounds: bool = False, steps: bool = False) -> Callable[[Rule], Rule]:
    """Declare a rule, and how exact it is; see `Exactness`."""

    def declare(function: Rule) -> Rule:
        function.__dict__["exactness"] = Exactness(rounds, steps)
        return function

    return declare


def exactness_of(function: Rule) -> Exactness:
    """Return what a rule declares.

    Raises:
        AttributeError: it declares nothing.
    """
    return function.exactness  # type: ignore[attr-defined, no-any-return]


def apply_rule(program: Program, function: Rule) -> Iterator[str]:
    """Offer every op to a rule; yield where it fires, each time that it does."""
    for node in list(program.calls()):
        if _is_erased(node):
            continue
        place = f"{node.name} ({op_name(node)})"
        if function(program, node):
            program.trace.append(f"{rule_name(function)} at {node.name}")
            yield place


def rule_name(function: Rule) -> str:
    return getattr(function, "__name__", str(function))


def _is_erased(node: fx.Node) -> bool:
    return bool(getattr(node, "_erased", False))


def replace(
    program: Program, node: fx.Node, target: Any, args: tuple[Any, ...], **kwargs: Any
) -> fx.Node:
    """Put a call in a node's place, with the node's value and module path."""
    with program.graph.inserting_before(node):
        new = program.graph.call_function(target, args, kwargs)
    new.meta = {key: item for key, item in node.meta.items() if key in (*PATH_KEYS, "val")}
    node.replace_all_uses_with(new)
    return new


def forward(program: Program, node: fx.Node, value: fx.Node) -> None:
    """Let the users of a node use another value, and drop the node."""
    node.replace_all_uses_with(value)
    program.graph.erase_node(node)


def erase_unused(program: Program, node: fx.Node) -> None:
    """Drop a node that nothing uses any more, so that it does not count as a user itself."""
    if not node.users:
        program.graph.erase_node(node)


def only_user(node: Any) -> fx.Node | None:
    """Return the node that alone uses a value, in one place; None where there are more or none."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return user if uses_in(user, node) == 1 else None


def uses_in(user: fx.Node, node: fx.Node) -> int:
    """Count the places of an op in which a value stands: keys may be the values too."""
    places: list[bool] = []
    fx.map_arg((user.args, user.kwargs), lambda arg: places.append(arg is node))
    return sum(places)


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Tell whether two shapes are known to be equal; asking adds no guard on symbolic sizes."""
    return same_extents(shape_of(a), shape_of(b))
