"""Parts of a model that PyTorch runs, as plain data: a list of calls of ops on a closed list.

Nothing is imported, unpickled, evaluated or generated to run one: `Interpreter` goes through the
calls in turn. What it may call is `singlecard.artifact.allowed`, on both sides; names of values are
places, which are numbers.

As JSON has it, a program is::

    {"inputs": 2, "tensors": [[2, held]],
     "calls": [[3, "aten.add.Tensor", [{"at": 0}, {"at": 2}], {}]], "outputs": [{"at": 3}]}
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.artifact.allowed import refusal_of_op
from singlecard.capture.layouts import packed, restrided
from singlecard.capture.opaque import Opaque
from singlecard.capture.plain import NotPlain, from_plain, number_function, number_name, to_plain
from singlecard.capture.pure import SPACES, leaves_unwritten

#: Inputs, calls, values and levels of nesting that a program has, at most.
MOST_INPUTS, MOST_CALLS, MOST_VALUES, MOST_LEVELS = 1 << 16, 1_000_000, 4_000_000, 8

#: How arguments are laid out in memory for ops that go by it.
_LAYOUTS: dict[str, Callable[..., Any]] = {"layout.packed": packed, "layout.restrided": restrided}

_hops = torch.ops.higher_order


@dataclass(frozen=True)
class At:
    """Stands for the value in a place."""

    place: int


def program_to_plain(module: fx.GraphModule, add: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """Return a graph of ops, with what it holds, as JSON has it.

    Args:
        module: its graph has placeholders, calls of functions, and what the module holds.
        add: keeps a tensor somewhere, and returns where, as JSON has it.

    Raises:
        NotPlain: it calls what no file may name, or holds what is no plain tensor.
    """
    return _Writer(module, add).plain()


class _Writer:
    def __init__(self, module: fx.GraphModule, add: Callable[[torch.Tensor], Any]) -> None:
        self.module, self.add = module, add
        self.places: dict[fx.Node, int] = {}
        self.graphs: dict[fx.Node, fx.GraphModule] = {}

    def plain(self) -> dict[str, Any]:
        tensors: list[Any] = []
        calls: list[Any] = []
        inputs = self.module.graph.find_nodes(op="placeholder")
        for node in inputs:
            self._place(node)
        outputs: Any = None
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                held = operator.attrgetter(str(node.target))(self.module)
                if isinstance(held, fx.GraphModule):
                    self.graphs[node] = held
                elif isinstance(held, torch.Tensor):
                    tensors.append([self._place(node), self.add(held)])
                else:
                    raise NotPlain(f"a {type(held).__name__}, which is no tensor")
            elif node.op == "call_function" and not _is_empty(node):
                call = self._call(node)
                calls.append([self._place(node), *call])
            elif node.op == "output":
                outputs = [self._value(item) for item in node.args[0]]
        return {"inputs": len(inputs), "tensors": tensors, "calls": calls, "outputs": outputs}

    def _place(self, node: fx.Node) -> int:
        return self.places.setdefault(node, len(self.places))

    def _call(self, node: fx.Node) -> list[Any]:
        target: Any = node.target
        if isinstance(target, Opaque):
            args, kwargs = target.with_operands(node.args)
            return self._control(target.op, args, kwargs)
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._control(target, node.args, node.kwargs)
        name = self._name(target)
        kwargs = {key: self._value(item) for key, item in node.kwargs.items()}
        return [name, [self._value(item) for item in node.args], kwargs]

    def _name(self, target: Any) -> str:
        if isinstance(target, torch._ops.OpOverload):
            reason = refusal_of_op(target, None)
            if reason:
                raise NotPlain(f"{target}, which no file may name: {reason}")
            return str(target)
        for name, function in _LAYOUTS.items():
            if target is function:
                return name
        return number_name(target)

    def _control(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        if op not in (_hops.cond, _hops.while_loop) or kwargs:
            raise NotPlain(f"higher_order.{op.name()}, which files have no word for")
        first, second, values = (
            (args[1], args[2], [args[0], *args[3]])
            if op is _hops.cond
            else (args[0], args[1], [*args[2], *args[3]])
        )
        graphs = [self._graph(item) for item in (first, second)]
        extra = {} if op is _hops.cond else {"carried": len(args[2])}
        return [op.name(), [self._value(item) for item in values], {"graphs": graphs, **extra}]

    def _graph(self, item: Any) -> dict[str, Any]:
        module = self.graphs[item] if isinstance(item, fx.Node) else item
        return _Writer(module, self.add).plain()

    def _value(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return {"at": self.places[item]}
        if isinstance(item, (list, tuple)):
            kind = "tuple" if isinstance(item, tuple) else "list"
            return {kind: [self._value(inner) for inner in item]}
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise NotPlain(f"the size {item}, which no value of the graph has")
        return to_plain(item)


def _is_empty(node: fx.Node) -> bool:
    """Tell whether a call gives nothing: what it would check was checked when it was exported."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and not target._schema.returns


@dataclass(frozen=True)
class _Call:
    """One call of a program: what, with what, where its result goes, and what is not read again."""

    place: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    done: tuple[int, ...]


class Interpreter:
    """Runs a program: takes the values of its inputs, returns those of its outputs."""

    def __init__(
        self,
        held: Any,
        read: Callable[[Any], torch.Tensor],
        device: torch.device,
        also: Collection[str] = (),
        level: int = 0,
    ) -> None:
        """Read a program.

        Args:
            held: what `program_to_plain` returned, as it was read from a file.
            read: returns the tensor that is kept somewhere, on the device.
            device: where it runs, whatever devices it names.
            also: ops of other libraries that it may call.
            level: of programs around this one.

        Raises:
            NotPlain: it is no program, or names what no file may name.
        """
        if level > MOST_LEVELS:
            raise NotPlain(f"programs in programs, more than {MOST_LEVELS} deep")
        self._read, self._device, self._also, self._level = read, device, also, level
        if not isinstance(held, dict):
            raise NotPlain("what is no program")
        try:
            inputs, tensors = held["inputs"], held["tensors"]
            calls, outputs = held["calls"], held["outputs"]
        except KeyError as error:
            raise NotPlain(f"a program without {error}") from error
        if not all(isinstance(item, list) for item in (tensors, calls, outputs)):
            raise NotPlain("a program of another form")
        if len(calls) > MOST_CALLS:
            raise NotPlain(f"{len(calls)} calls, of which a program has at most {MOST_CALLS}")
        self.count = _whole(inputs)
        if self.count > MOST_INPUTS:
            raise NotPlain(f"{self.count} inputs, of which a program has at most {MOST_INPUTS}")
        self._known = set(range(self.count))
        self._held: dict[int, torch.Tensor] = {}
        for item in tensors:
            place, where = _some(item, 2)
            self._held[self._new(place)] = read(where)
        made = [self._call(item) for item in calls]
        self._outputs = tuple(self._value(item) for item in outputs)
        self._calls = _with_ends(made, self._outputs, self._held)

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        found: dict[int, Any] = {**dict(enumerate(values)), **self._held}
        for call in self._calls:
            args = [_filled(item, found) for item in call.args]
            kwargs = {key: _filled(item, found) for key, item in call.kwargs.items()}
            found[call.place] = call.function(*args, **kwargs)
            del args, kwargs
            for place in call.done:
                found.pop(place, None)
        return [_filled(item, found) for item in self._outputs]

    def _new(self, place: Any) -> int:
        number = _whole(place)
        if number in self._known or number > MOST_VALUES:
            raise NotPlain(f"two values in place {number}")
        self._known.add(number)
        return number

    def _call(self, item: Any) -> _Call:
        place, name, args, kwargs = _some(item, 4)
        if not (isinstance(name, str) and isinstance(args, list) and isinstance(kwargs, dict)):
            raise NotPlain(f"a call of another form, of {name!r}"[:200])
        given = tuple(self._value(arg) for arg in args)
        if name in ("cond", "while_loop"):
            return _Call(self._new(place), self._control(name, kwargs), given, {}, ())
        named = {key: self._value(arg) for key, arg in kwargs.items()}
        return _Call(self._new(place), self._function(name), given, named, ())

    def _function(self, name: str) -> Callable[..., Any]:
        if name in _LAYOUTS:
            return _LAYOUTS[name]
        if name.startswith(("operator.", "math.", "torch.")):
            return number_function(name)
        space, _, rest = name.partition(".")
        packet, _, overload = rest.partition(".")
        # `torch.ops` makes a namespace of any name, and looks libraries up by some.
        is_known = space in SPACES or name in self._also
        found = getattr(torch.ops, space, None) if is_known else None
        for part in (packet, overload):
            found = getattr(found, part, None)
        if not isinstance(found, torch._ops.OpOverload) or str(found) != name:
            raise UnknownOp(name) if is_known else NotTrusted(name)
        reason = refusal_of_op(found, self._also)
        if reason:
            raise NotPlain(f"{name}, which no file may name: {reason}")
        return _written_to(found) if leaves_unwritten(found) else found

    def _control(self, name: str, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
        first, second = (
            Interpreter(item, self._read, self._device, self._also, self._level + 1)
            for item in _some(kwargs.get("graphs"), 2)
        )
        if name == "cond":
            return lambda choice, *values: (first if choice else second)(values)
        carried = _whole(kwargs.get("carried"))

        def loop(*values: Any) -> list[Any]:
            changing, rest = list(values[:carried]), values[carried:]
            while first([*changing, *rest])[0]:
                changing = second([*changing, *rest])
            return changing

        return loop

    def _value(self, item: Any, depth: int = 0) -> Any:
        if depth > MOST_LEVELS:
            raise NotPlain(f"arguments that are nested more than {MOST_LEVELS} deep")
        if isinstance(item, dict) and len(item) == 1:
            ((kind, held),) = item.items()
            if kind == "at":
                if _whole(held) not in self._known:
                    raise NotPlain(f"a value in place {held}, before it is made")
                return At(held)
            if kind in ("list", "tuple") and isinstance(held, list):
                inner = [self._value(one, depth + 1) for one in held]
                return tuple(inner) if kind == "tuple" else inner
            if kind == "device":
                return self._device
        if isinstance(item, list):
            raise NotPlain("a list that is not called one")
        return from_plain(item)


class UnknownOp(NotPlain):
    """A program calls an op that nothing has registered in this process."""


class NotTrusted(NotPlain):
    """A program calls an op of a library that whoever loads it has not named."""


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise NotPlain(f"{value!r} in the place of a whole number"[:200])
    return int(value)


def _some(value: Any, count: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        raise NotPlain(f"{value!r} in the place of {count} things"[:200])
    return value


def _written_to(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """Return an op that gives zeros where it would give memory as it finds it."""
    return lambda *args, **kwargs: op(*args, **kwargs).zero_()


def _filled(item: Any, found: Mapping[int, Any]) -> Any:
    if type(item) is At:
        return found[item.place]
    if type(item) is list:
        return [_filled(inner, found) for inner in item]
    if type(item) is tuple:
        return tuple(_filled(inner, found) for inner in item)
    return item


def _places(item: Any) -> list[int]:
    if type(item) is At:
        return [item.place]
    if type(item) in (list, tuple):
        return [place for inner in item for place in _places(inner)]
    return []


def _with_ends(
    calls: Sequence[_Call], outputs: Sequence[Any], held: Mapping[int, Any]
) -> tuple[_Call, ...]:
    """Note behind each call which values no later one reads."""
    needed = {*_places(list(outputs)), *held}
    ended: list[_Call] = []
    for call in reversed(calls):
        read = {*_places(list(call.args)), *_places(list(call.kwargs.values())), call.place}
        done = tuple(sorted(read - needed))
        needed |= read
        ended.append(_Call(call.place, call.function, call.args, call.kwargs, done))
    return tuple(reversed(ended))
