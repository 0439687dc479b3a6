"""The Program: what capture hands to the passes."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from singlecard.capture.opaque import is_opaque
from singlecard.capture.results import Result
from singlecard.capture.scope import Scope
from singlecard.capture.spill import Spill
from singlecard.errors import CaptureError
from singlecard.host_memory import host_view, on_cpu

#: Ops that may appear in a functional graph although they are not ATen.
_PLAIN_FUNCTIONS = ("_operator", "builtins", "math", "torch")

#: Runs an op for its effect, such as raising on a singular matrix; tokens keep several in order.
with_effects = torch.ops.higher_order.with_effects


@dataclass
class Program:
    """A functional ATen graph with frozen constants, and calls of `Opaque` for ops on graphs.

    Attributes:
        module: the graph. Its placeholders are the inputs that vary from call to call, in order;
            constants are ``get_attr`` nodes; its outputs are the results, then the new values of
            the mutated inputs, then sizes that views among the results need.
        positions: for each placeholder, its place in the flat list that AOTAutograd calls with.
        frozen: for each frozen tensor, its place in that list and the tensor it must be.
        mutations: for each output after the results, the place of the input it is written to.
        results: for each result, how it lies in memory.
        trace: what the passes did.
        passed: the results that AOTAutograd replaces by an argument, each with that argument's
            place; None where it does more around a call than that.
        spill: where constants are put that are made of the frozen ones; None: in memory.
        again: captures the same graph with the same weights once more; None where that cannot be.
        scope: what surrounds the graph in the model that it is of.
        followed: by name, constants that are weights and are not held: they come from the model.
        constness: of nodes that were asked about, whether they follow from constants alone.
            Rewrites keep values, and so keep this.
    """

    module: fx.GraphModule
    positions: tuple[int, ...]
    frozen: dict[int, torch.Tensor]
    mutations: tuple[int, ...]
    results: tuple[Result, ...]
    trace: list[str] = field(default_factory=list)
    passed: tuple[tuple[int, int], ...] | None = None
    spill: Spill | None = None
    again: Callable[[], Program] | None = None
    scope: Scope = Scope()
    followed: dict[str, weakref.ref[torch.Tensor]] = field(default_factory=dict, repr=False)
    constness: dict[fx.Node, bool] = field(default_factory=dict, init=False, repr=False)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        return self.graph.find_nodes(op="placeholder")

    @property
    def outputs(self) -> list[Any]:
        """The output node's arguments: nodes, numbers or None."""
        return list(self.graph.output_node().args[0])  # type: ignore[arg-type]

    def copy(self) -> Program:
        """Return a Program whose graph can be changed without this one; constants are shared."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        module = fx.GraphModule(self.module, graph)
        module.meta = dict(self.module.meta)
        return replace(self, module=module, trace=list(self.trace))

    def calls(self) -> Iterator[fx.Node]:
        """Yield the nodes that compute something."""
        return (node for node in self.graph.nodes if node.op == "call_function")

    def constant(self, node: fx.Node) -> torch.Tensor | None:
        """Return the tensor behind a ``get_attr`` node, or None for another node."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return getattr(self.module, str(node.target))  # type: ignore[no-any-return]
        return None

    def copy_constants(self) -> None:
        """Let go of memory that others write to; what is on a card is copied when it is lowered."""
        for name, value in list(self.module.named_buffers()):
            if value.device.type == "cpu" or host_view(value) is not None:
                self.module.register_buffer(name, self.hold(on_cpu(value).clone()))

    def hold(self, value: torch.Tensor) -> torch.Tensor:
        """Return a constant just made, whose memory nobody else uses, from where it is kept."""
        return value if self.spill is None else self.spill.hold(value)

    def convert(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a copy of a constant in another type, from where it is kept."""
        if self.spill is None:
            return value.to(dtype, copy=True)
        return self.spill.convert(value, dtype)

    def let_go(self) -> None:
        """Forget the values of all constants: what holds them needs them no more."""
        for name, value in list(self.module.named_buffers(remove_duplicate=False)):
            self.module.register_buffer(name, value.to("meta"))

    def settle(self) -> None:
        """Say that the graph changes no more: it keeps no weight alive, and goes when it is let go.

        A module and its graph hold one another, so that constants would wait for a collection.
        """
        self.frozen = {}
        self.constness.clear()
        self.graph.owning_module = None

    def discard(self) -> None:
        """Free all that this Program alone holds; it is of no use any more.

        A graph and its nodes hold one another, so that it would wait for Python's collector, and
        constants with it.
        """
        self.constness.clear()
        self.module._buffers.clear()
        for node in reversed(self.graph.nodes):
            node.meta.clear()
            node.args, node.kwargs = (), {}
            self.graph.erase_node(node)

    def follow_weights(self) -> None:
        """Know the weights themselves where constants are weights: where they go, these go too.

        Neither they nor their memory are kept from here on; see `followed`.
        """
        own = {_extent(weight): weight for weight in self.frozen.values()}
        for name, value in list(self.module.named_buffers(remove_duplicate=False)):
            weight = own.get(_extent(value))
            if weight is not None:
                self.followed[name] = weakref.ref(weight)
                self.module._buffers[name] = value.to("meta")
        self.frozen = {}

    def new_constant(self, before: fx.Node, value: torch.Tensor, like: fx.Node) -> fx.Node:
        """Add a constant in front of ``before``; ``like`` lends its module path and place."""
        name = f"constant_{len(self.module._buffers)}"
        while hasattr(self.module, name):
            name += "_"
        self.module.register_buffer(name, value)
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(name)
        node.meta = {key: item for key, item in like.meta.items() if key in PATH_KEYS}
        fake = like.meta["val"]
        mode = fake.fake_mode
        with mode:
            node.meta["val"] = torch.empty_strided(
                tuple(value.shape), value.stride(), dtype=value.dtype, device=fake.device
            )
        return node

    def drop_dead(self) -> None:
        """Erase what nothing reads, but for ops that are run for more than their results."""
        self.graph.eliminate_dead_code(lambda node: node.is_impure() or is_opaque(node))

    def check(self) -> None:
        """Verify the Program's rules.

        Raises:
            CaptureError: the graph is malformed, an op is not functional, or a value lacks a type.
        """
        self.graph.lint()
        for node in self.graph.nodes:
            if node.op in ("output", "get_attr"):
                continue
            if node.op == "call_function":
                target = node.target
                if isinstance(target, torch._ops.OpOverload):
                    if target._schema.is_mutable:
                        raise CaptureError(f"{target} changes its arguments: not functional")
                elif target is with_effects:
                    if not isinstance(node.args[1], torch._ops.OpOverload):
                        raise CaptureError(f"{node.args[1]} is run for its effect, and no ATen op")
                elif is_opaque(node):
                    pass
                elif getattr(target, "__module__", None) not in _PLAIN_FUNCTIONS:
                    raise CaptureError(f"{target} is not an ATen op")
            elif node.op != "placeholder":
                raise CaptureError(f"a {node.op} node ({node.name}) has no place in a Program")
            if "val" not in node.meta:
                raise CaptureError(f"nothing is known of the value of {node.name}")


def _extent(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common that are the same values in the same memory."""
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


#: Keys of node metadata that lead back to the user's model.
PATH_KEYS = ("nn_module_stack", "stack_trace", "original_aten", "from_node")


def module_path(node: fx.Node) -> str:
    """Return the path of the module that an op comes from: ``encoder.layer.0.attention``."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = _ITEM.sub(r".\1\2", _ROOT.sub("", str(next(reversed(stack.values()))[0])))
    path = path.replace("._modules", "").lstrip(".")
    return path.removeprefix("module.") if path != "module" else ""


#: What Dynamo puts in front of a module path: the variable that the model was found in, whatever
#: its name (``self``, a function's, a global), and what lies around the model.
_ROOT = re.compile(
    r"^(?:L\['[^']*'\]|G\['__import_[^']*'\]\.\w+|G\['[^']*'\])"
    r"(?:\.__closure__\[\d+\]\.cell_contents|\.__self__|\.__func__|\.__wrapped__|\._orig_mod)*"
)

#: A module in a list or a dictionary.
_ITEM = re.compile(r"\[(?:'([^']*)'|(\d+))\]")


def source_line(node: fx.Node) -> str:
    """Return the user's own line that an op comes from, as ``file:line: code``, or ''.

    A line of singlecard, which calls a model to compile it, is none.
    """
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("File "):
            file, _, rest = lines[index].removeprefix("File ").partition(", line ")
            file = file.strip(chr(34))
            if not file.startswith(_OWN_FOLDER):
                number = rest.partition(",")[0]
                code = lines[index + 1] if index + 1 < len(lines) else ""
                return f"{file}:{number}: {code}"
    return ""


_OWN_FOLDER = str(Path(__file__).parents[1]) + os.sep
