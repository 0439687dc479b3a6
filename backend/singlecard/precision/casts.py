"""Where a Program computes in FP16 or BF16: casts are placed, every value's type is known after.

Places, angles and what is compared stay in FP32, as `precision/places.py` finds them: FP16 cannot
tell position 2049 from 2048. A cache that is written in place keeps its type: it is the caller's
memory. Sums over many elements stay in FP32 too, with the squares that go
into them and the roots that are drawn from them. What exceeds the low type's range, as masks do
that are filled with FP32's lowest number, becomes the type's own largest number, not infinity.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import fx

from singlecard.capture.ops import attention, update_cache
from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.quantized import dequantize, fake_quantize, quantized_attention
from singlecard.lowering.call import tensors_in
from singlecard.passes.intervals import interval_of
from singlecard.precision.bounds import bound_of
from singlecard.precision.places import FULL_PRECISION, places_of, read_places

aten = torch.ops.aten

#: Ops between a square and its sum, or behind a sum: small, and with values of any magnitude.
_POINTWISE = frozenset(
    {
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Tensor,
        aten.div.Scalar,
        aten.pow.Tensor_Scalar,
        aten.rsqrt.default,
        aten.sqrt.default,
        aten.reciprocal.default,
        aten.clamp.default,
        aten.maximum.default,
    }
)
_TERMS = frozenset({aten.pow.Tensor_Scalar, aten.mul.Tensor, aten.exp.default})


def lower_precision(
    program: Program, dtype: torch.dtype, stays: Callable[[fx.Node], bool]
) -> Program:
    """Let the FP32 parts of a Program compute in ``dtype``, in place.

    Args:
        program: a simplified Program.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        stays: tells of an op whether it keeps its types (what eager PyTorch will run).
    """
    _Lowering(program, dtype, stays).run()
    return program


class _Lowering:
    def __init__(
        self, program: Program, dtype: torch.dtype, stays: Callable[[fx.Node], bool]
    ) -> None:
        self.program, self.dtype, self.stays = program, dtype, stays
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self.places = places_of(program)
        self.statistics: set[fx.Node] = set()

    def run(self) -> None:
        graph = self.program.graph
        for node in list(graph.nodes):
            if node.op == "call_function":
                self.visit(node)
        output = graph.output_node()
        wanted = {
            value: self.original(value) for value in output.all_input_nodes if self.is_float(value)
        }
        output.args = fx.map_arg(
            output.args,
            lambda value: self.cast(value, wanted[value]) if value in wanted else value,
        )

    @staticmethod
    def is_float(node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dtype.is_floating_point

    @staticmethod
    def original(node: fx.Node) -> torch.dtype:
        return node.meta.get("declared_dtype") or node.meta["val"].dtype  # type: ignore[no-any-return]

    def visit(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            self.follow(node)
            return
        floats = [arg for arg in node.all_input_nodes if self.is_float(arg)]
        results = list(tensors_in(node.meta["val"]))
        if not any(result.dtype == torch.float32 for result in results) and not any(
            self.original(arg) == torch.float32 for arg in floats
        ):
            return
        if node in self.places:
            if node in self.places.kept:
                self.program.trace.append(f"keep_places at {node.name}")
            self.recast_inputs(node, torch.float32)
            return
        computed = [arg for arg in floats if arg.op != "get_attr"]  # constants follow the others
        if self.is_statistic(node, computed):
            self.statistics.add(node)
            self.recast_inputs(node, torch.float32)
            return
        if self.stays(node) or _feeds_sums(node) or node.target is update_cache:
            self.recast_inputs(node, torch.float32)
            return
        self.saturate_numbers(node)
        read = {arg for arg in read_places(node) if arg in self.places}
        self.recast_inputs(node, self.dtype, read)
        self.retype(node)

    def is_statistic(self, node: fx.Node, computed: list[fx.Node]) -> bool:
        """Tell whether a value is a sum, or follows from sums alone without heavy work."""
        if self.stays(node):
            return False
        behind = node.target in _POINTWISE and all(
            arg in self.places or arg in self.statistics for arg in computed
        )
        return node.target in FULL_PRECISION or (bool(computed) and behind)

    def saturate_numbers(self, node: fx.Node) -> None:
        """Replace finite numbers that the low type cannot hold by the largest that it can."""
        limit = torch.finfo(self.dtype).max

        def saturated(arg: Any) -> Any:
            if isinstance(arg, float) and math.isfinite(arg):
                return min(max(arg, -limit), limit)
            return arg

        node.args = tuple(saturated(arg) for arg in node.args)

    def follow(self, node: fx.Node) -> None:
        """Give an item of a tuple the type that the tuple's maker gives it now."""
        source: Any = node.args[0]
        now = source.meta["val"][node.args[1]]
        if isinstance(now, torch.Tensor) and now.dtype != node.meta["val"].dtype:
            self.retype(node)

    def recast_inputs(
        self, node: fx.Node, dtype: torch.dtype, exact: Set[fx.Node] = frozenset()
    ) -> None:
        """Give an op its FP32 arguments in a type; those in ``exact`` stay as they are."""
        # The lowering knows which type TensorRT wants a scale in.
        scale = node.args[1] if node.target in (fake_quantize, dequantize) else None

        def convert(arg: fx.Node) -> fx.Node:
            if arg is scale or arg in exact:
                return arg
            if self.is_float(arg) and self.original(arg) == torch.float32:
                return self.cast(arg, dtype)
            return arg

        node.args = fx.map_arg(node.args, convert)
        node.kwargs = fx.map_arg(node.kwargs, convert)

    def cast(self, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        if value.meta["val"].dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self.casts:
            source = self.saturated(value) if dtype == self.dtype else value
            with self.program.graph.inserting_after(self.anchor(source)):
                new = self.program.graph.call_function(
                    aten._to_copy.default, (source,), {"dtype": dtype}
                )
            new.meta = {k: item for k, item in value.meta.items() if k in PATH_KEYS}
            new.meta["val"] = value.meta["val"].to(dtype)
            new.meta["declared_dtype"] = self.original(value)
            self.casts[key] = new
        return self.casts[key]

    def saturated(self, value: fx.Node) -> fx.Node:
        """Return a value held to the low type's range, where it may leave it."""
        limit, is_mask = torch.finfo(self.dtype).max, _is_mask(value)
        if is_mask:  # less, so that its sum with scores is a number still
            limit *= 0.75
        elif value.op != "get_attr" and not (
            value in self.places.integral or value in self.statistics
        ):
            return value
        if value.target in FULL_PRECISION or bound_of(self.program, value) <= limit:
            return value
        constant = self.program.constant(value)
        if constant is not None:  # folded later, infinities kept
            return self.saturated_constant(value, constant, limit)
        with self.program.graph.inserting_after(self.anchor(value)):
            new = self.program.graph.call_function(aten.clamp.default, (value, -limit, limit))
        new.meta = {k: item for k, item in value.meta.items() if k in (*PATH_KEYS, "val")}
        return self.still_hiding(value, new) if is_mask else new

    def still_hiding(self, mask: fx.Node, held: fx.Node) -> fx.Node:
        """Keep the minus infinities of a mask that was held to a range: what hides is no number."""
        if interval_of(self.program, mask).low > -math.inf:
            return held
        graph, paths = self.program.graph, {k: v for k, v in held.meta.items() if k in PATH_KEYS}
        with graph.inserting_after(held):
            hides = graph.call_function(aten.eq.Scalar, (mask, -math.inf))
        hides.meta = {**paths, "val": mask.meta["val"].eq(-math.inf)}
        with graph.inserting_after(hides):
            new = graph.call_function(aten.where.self, (hides, mask, held))
        new.meta = {**paths, "val": held.meta["val"]}
        return new

    def saturated_constant(self, node: fx.Node, value: torch.Tensor, limit: float) -> fx.Node:
        low, high = value.aminmax() if value.numel() else (value, value)
        if value.numel() == 0 or bool((-limit <= low) & (high <= limit)):
            return node
        beyond = value.isfinite() & (value.abs() > limit)
        if not bool(beyond.any()):
            return node
        return self.program.new_constant(
            node.next, torch.where(beyond, value.clamp(-limit, limit), value), node
        )

    @staticmethod
    def anchor(value: fx.Node) -> fx.Node:
        """Return the node to insert behind: placeholders stay together at the top."""
        last: fx.Node = value
        if value.op == "placeholder":
            last = value.graph.find_nodes(op="placeholder")[-1]
        return last

    def retype(self, node: fx.Node) -> None:
        """Declare what a node that now computes in the low precision returns."""
        before = node.meta["val"]
        if isinstance(before, torch.Tensor) and before.dtype == torch.float32:
            node.meta["declared_dtype"] = torch.float32
        if node.kwargs.get("dtype") == torch.float32:
            node.kwargs = {**node.kwargs, "dtype": self.dtype}
        if node.target is dequantize and node.args[3] == torch.float32:
            node.update_arg(3, self.dtype)
        node.meta["val"] = self.low(before)

    def low(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self.dtype) if value.dtype == torch.float32 else value
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.low, value))
        return value


def _feeds_sums(node: fx.Node) -> bool:
    """Tell whether a value is a term of sums and nothing else, so that it may be large."""
    return node.target in _TERMS and all(user.target in FULL_PRECISION for user in node.users)


def _is_mask(node: fx.Node) -> bool:
    """Tell whether a value, or a sum or view of it, is what attention adds to its scores."""
    seen, waiting = {node}, [node]
    while waiting and len(seen) < _FOLLOWED:
        value = waiting.pop()
        for user in value.users:
            if user.target in (attention, quantized_attention) and user.args[3] is value:
                return True
            if user.target in _OF_MASKS and user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


#: What is done to masks on their way to attention, and how many ops are looked at.
_OF_MASKS = frozenset(
    {
        aten.add.Tensor,
        aten.where.self,
        aten.view.default,
        aten.reshape.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.slice.Tensor,
    }
)
_FOLLOWED = 32
