"""Puts quantization into a Program: rounding of values and codes for weights, where it is told to.

Before:  linear(x, W, b)                     convolution(x, W, b, ...)
After:   linear(round(x), codes(W)) * gains + b

A weight has one scale for the builder; what channels differ by is multiplied into the result, where
it joins the kernel behind (`singlecard.precision.weights.by_gains`). Weights that read the same
tensor share that scale, so that the builder still joins their products into one. A divisor moves
range from a tensor to its weights before both are rounded. An addition that reads such a tensor
too, a residual connection, reads it rounded: its unrounded form is then never written.
`docs/quantization.md` has the counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.quantized import KINDS, dequantize, fake_quantize, quantized_attention
from singlecard.errors import CalibrationError
from singlecard.precision.points import Point
from singlecard.precision.table import CalibrationTable, TensorScale
from singlecard.precision.weights import (
    BLOCKS,
    Quantized,
    by_blocks,
    by_gains,
    by_row_scales,
    largest_of_rows,
)

aten = torch.ops.aten

#: Precisions in which values that are computed at run time are rounded too.
ROUNDING = ("int8", "fp8")


def refusal(point: Point, precision: str, table: CalibrationTable | None) -> str | None:
    """Return why a point cannot have a precision, as one sentence, or None where it can."""
    if precision not in ROUNDING:
        return _weight_refusal(point, precision)
    if point.op == "embedding":
        return f"{precision} rounds the operands of products, and an embedding has none"
    if point.op == "attention":
        query = point.node.args[0].meta["val"]  # type: ignore[union-attr]
        if query.shape[-2] == 1:
            return "attention of a single query keeps the layer that reads shared heads"
    if table is None:
        return f"{precision} needs a calibration table"
    missing = [name for name, _ in point.operands if name not in table.tensors]
    return f"the calibration table has no entry for {missing[0]}" if missing else None


def _weight_refusal(point: Point, precision: str) -> str | None:
    kind = precision.removesuffix("-weight")
    if point.op not in ("linear", "embedding"):
        return f"{precision} is for linear layers and embeddings, and this is {point.op}"
    if kind == "int4" and _block(point) is None:
        assert point.weight is not None
        width = point.weight.shape[1]
        return f"INT4 needs rows of a multiple of {BLOCKS[-1]} elements, got {width}"
    return None


def _block(point: Point) -> int | None:
    """Return the largest block size that divides the rows of a weight."""
    assert point.weight is not None
    return next((block for block in BLOCKS if point.weight.shape[1] % block == 0), None)


def read_rounded(points: Iterable[Point], assignment: Mapping[str, str]) -> set[str]:
    """Return the points of an assignment, less the residual operands that no product rounds."""
    given = [point for point in points if point.name in assignment]
    rounded = {
        point.operands[0][0]
        for point in given
        if point.op in ("linear", "convolution") and assignment[point.name] in ROUNDING
    }
    return {
        point.name for point in given if point.op != "residual" or point.operands[0][0] in rounded
    }


def quantize(
    program: Program,
    points: Sequence[Point],
    assignment: Mapping[str, str],
    table: CalibrationTable | None,
    known: dict[tuple[Any, ...], Quantized] | None = None,
    instead: Mapping[tuple[str, str], torch.Tensor] | None = None,
) -> Program:
    """Quantize points of a Program in place.

    Args:
        program: simplified, in its own precision still.
        points: of this Program.
        assignment: for each point to quantize, by name, ``int8``, ``fp8``, ``int8-weight`` or
            ``int4-weight``; `refusal` has none for it.
        table: scales of values that are computed at run time.
        known: codes of weights from earlier calls with the same table, which are added to.
        instead: weights to take codes of instead of a point's own, by name and precision.
    """
    known = {} if known is None else known
    _Quantizer(program, points, assignment, table, known, instead or {}).run()
    program.drop_dead()
    return program


def _check_channels(point: Point, what: str, numbers: Sequence[float], channels: int) -> None:
    if numbers and len(numbers) != channels:
        raise CalibrationError(
            f"the {what} of {point.operands[0][0]} in the calibration table has {len(numbers)} "
            f"numbers, and {point.name} reads {channels} channels: calibrate again, or take it out"
        )


class _Quantizer:
    def __init__(
        self,
        program: Program,
        points: Sequence[Point],
        assignment: Mapping[str, str],
        table: CalibrationTable | None,
        known: dict[tuple[Any, ...], Quantized],
        instead: Mapping[tuple[str, str], torch.Tensor],
    ) -> None:
        self.program, self.table, self.known, self.instead = program, table, known, instead
        taken = read_rounded(points, assignment)
        self.points = [point for point in points if point.name in taken]
        self.assignment = assignment
        self.rounded: dict[tuple[str, str], fx.Node] = {}
        self.divided: dict[tuple[str, tuple[float, ...]], fx.Node] = {}
        self.sources: dict[str, fx.Node] = {}
        self.divisors: dict[str, torch.Tensor | None] = {}

    def run(self) -> None:
        shared = self.shared_ranges()
        for point in self.points:
            precision = self.assignment[point.name]
            if point.op == "attention":
                self.attention(point, precision)
            elif point.op == "product":
                self.product(point, precision)
            elif point.op == "residual":
                self.residual(point, precision)
            elif point.op == "embedding":
                self.embedding(point, precision)
            else:
                self.weighted(point, precision, shared[point.name])
            self.program.trace.append(f"quantize {precision} at {point.name}")

    def shared_ranges(self) -> dict[str, float]:
        """Return for each point with a weight the magnitude that its scale is for.

        Linear layers that read one tensor share it.
        """
        groups: dict[tuple[str, str, str], list[Point]] = {}
        for point in self.points:
            if point.weight is not None and point.op != "embedding":
                own = point.name if point.op == "convolution" else ""
                key = (point.operands[0][0], self.assignment[point.name], own)
                groups.setdefault(key, []).append(point)
        result = {}
        for members in groups.values():
            largest = max(float(largest_of_rows(self.weight(point)).max()) for point in members)
            result.update({point.name: largest for point in members})
        return result

    def scale_of(self, name: str) -> TensorScale:
        assert self.table is not None
        return self.table.tensors[name]

    def divisor(self, point: Point) -> torch.Tensor | None:
        """Return what a point's input is divided by, where its table says so."""
        if self.table is None or point.op != "linear":
            return None
        scale = self.table.tensors.get(point.operands[0][0])
        if scale is None:
            return None
        rounds = self.assignment[point.name] in ROUNDING
        numbers = scale.divisor if rounds else scale.weights_divisor
        assert point.weight is not None
        _check_channels(point, "divisor", numbers, point.weight.shape[1])
        return torch.tensor(numbers) if numbers else None

    def weight(self, point: Point) -> torch.Tensor:
        """Return a point's weight in FP32, times the divisor of its input."""
        assert point.weight is not None
        own = self.instead.get((point.name, self.assignment[point.name]), point.weight)
        weight = own.detach().to("cpu", torch.float32)
        divisor = self.divisor(point)
        return weight if divisor is None else weight * divisor

    def weighted(self, point: Point, precision: str, largest: float) -> None:
        node, name = point.node, point.operands[0][0]
        source: Any = node.args[0]  # as it is now: what was before it may have been replaced
        weight = self.weight(point)
        quantized = self.quantized(point, precision, weight, largest)
        if precision in ROUNDING:
            value = self.round(node, name, source, precision, self.divisor(point))
        else:
            value = self.divide(node, name, source, self.divisor(point))
        bias = self.bias(point, weight, quantized)
        codes = self.codes(node, quantized)
        if point.op == "linear":
            result = self.call(node, aten.linear.default, (value, codes))
        else:
            result = self.call(node, aten.convolution.default, (value, codes, None, *node.args[3:]))
        trailing = 0 if point.op == "linear" else weight.ndim - 2
        if quantized.gains is not None:
            gains = quantized.gains.reshape(-1, *[1] * trailing).to(node.meta["val"].dtype)
            result = self.call(node, aten.mul.Tensor, (result, self.constant(node, gains)))
        if bias is not None:
            shaped = bias.reshape(-1, *[1] * trailing).to(node.meta["val"].dtype)
            result = self.call(node, aten.add.Tensor, (result, self.constant(node, shaped)))
        self.put(node, result)

    def quantized(
        self, point: Point, precision: str, weight: torch.Tensor, largest: float
    ) -> Quantized:
        key = point.name, precision, largest
        if key not in self.known:
            if precision == "int4-weight":
                made = by_blocks(weight, _block(point))  # type: ignore[arg-type]
            else:
                made = by_gains(weight, precision.removesuffix("-weight"), largest)
            self.known[key] = self.held(made)
        return self.known[key]

    def held(self, quantized: Quantized) -> Quantized:
        return replace(quantized, codes=self.program.hold(quantized.codes))

    def bias(self, point: Point, weight: torch.Tensor, quantized: Quantized) -> torch.Tensor | None:
        """Return a point's bias, less the mean of the error that its weight's rounding makes.

        Source: Nagel et al., "Data-free quantization through weight equalization and bias
        correction", 2019; the means come from calibration.
        """
        given = point.node.args[2] if len(point.node.args) > 2 else None
        held = self.program.constant(given) if isinstance(given, fx.Node) else None
        bias = None if held is None else held.detach().to("cpu", torch.float32)
        scale = self.table.tensors.get(point.operands[0][0]) if self.table else None
        if scale is None or not scale.means or self.assignment[point.name] not in ROUNDING:
            return bias
        groups = int(point.node.args[8]) if point.op == "convolution" else 1  # type: ignore[arg-type]
        _check_channels(point, "means", scale.means, groups * weight.shape[1])
        means = torch.tensor(scale.means)
        divisor = self.divisor(point)
        means = means if divisor is None else means / divisor
        error = weight - quantized.value()
        error = error.reshape(groups, len(error) // groups, error.shape[1], -1).sum(-1)
        means = means.reshape(groups, -1, 1)
        more = (error @ means).reshape(-1)
        return more if bias is None else bias + more

    def embedding(self, point: Point, precision: str) -> None:
        assert point.weight is not None
        weight = point.weight.detach().to("cpu", torch.float32)
        if precision == "int8-weight":
            quantized = by_row_scales(weight)
        else:
            quantized = by_blocks(weight, _block(point))  # type: ignore[arg-type]
        point.node.update_arg(0, self.codes(point.node, self.held(quantized)))

    def product(self, point: Point, precision: str) -> None:
        for place, (name, _) in enumerate(point.operands):
            source: Any = point.node.args[place]
            rounded = self.round(point.node, name, source, precision, None)
            point.node.update_arg(place, rounded)

    def residual(self, point: Point, precision: str) -> None:
        """Add what the products read, so that the value itself is never written."""
        name, divisor = point.operands[0][0], self.divisors.get(point.operands[0][0])
        node, rounded = point.node, self.rounded.get((name, precision))
        if rounded is None:  # its products have another precision
            return
        if divisor is not None:
            factor = self.constant(node, divisor.to(rounded.meta["val"].dtype))
            rounded = self.call(node, aten.mul.Tensor, (rounded, factor))
        node.replace_input_with(self.sources[name], rounded)

    def attention(self, point: Point, precision: str) -> None:
        node = point.node
        query, key, value, mask, causal, scale, shared, *rest = node.args
        width = query.meta["val"].shape[-1]  # type: ignore[union-attr]
        factor = 1 / math.sqrt(width) if scale is None else float(scale)  # type: ignore[arg-type]
        steps = [self.step(name, precision) for name, _ in point.operands]
        steps[0] *= abs(factor) or 1.0
        args = (query, key, value, mask, causal, scale, shared, bool(rest and rest[0]))
        self.put(node, self.call(node, quantized_attention, (*args, steps, precision)))

    def step(self, name: str, kind: str) -> float:
        scale = self.scale_of(name)
        # FP8 loses little at its ends: what would be cut off counts more than what is rounded.
        top = max(scale.threshold, scale.largest) if kind == "fp8" and not scale.divisor else None
        return (top or scale.threshold) / KINDS[kind].largest

    def divide(
        self, node: fx.Node, name: str, source: fx.Node, divisor: torch.Tensor | None
    ) -> fx.Node:
        """Return a value over its divisor, made once for all that read it so."""
        if divisor is None:
            return source
        key = name, tuple(divisor.tolist())
        if key not in self.divided:
            factor = (1 / divisor).to(source.meta["val"].dtype)
            args = (source, self.constant(node, factor))
            self.divided[key] = self.call(node, aten.mul.Tensor, args)
        return self.divided[key]

    def round(
        self, node: fx.Node, name: str, source: fx.Node, kind: str, divisor: torch.Tensor | None
    ) -> fx.Node:
        """Return a rounded value, made once for all that read it so."""
        if (name, kind) not in self.rounded:
            self.sources[name], self.divisors[name] = source, divisor
            value = self.divide(node, name, source, divisor)
            scale = self.constant(node, torch.tensor(self.step(name, kind)))
            self.rounded[name, kind] = self.call(node, fake_quantize, (value, scale, kind))
        return self.rounded[name, kind]

    def codes(self, node: fx.Node, quantized: Quantized) -> fx.Node:
        codes = self.constant(node, quantized.codes)
        scale = self.constant(node, quantized.scale)
        dtype = node.meta["val"].dtype
        return self.call(node, dequantize, (codes, scale, quantized.kind, dtype))

    def constant(self, node: fx.Node, value: torch.Tensor) -> fx.Node:
        return self.program.new_constant(node, value, node)

    def call(self, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
        """Add a call in front of a node, with the node's module path."""
        with self.program.graph.inserting_before(node):
            new = self.program.graph.call_function(target, args)
        new.meta = {key: item for key, item in node.meta.items() if key in PATH_KEYS}
        with node.meta["val"].fake_mode:
            new.meta["val"] = target(*fx.map_arg(args, lambda arg: arg.meta["val"]))
        return new

    def put(self, node: fx.Node, value: fx.Node) -> None:
        node.replace_all_uses_with(value)
        self.program.graph.erase_node(node)
