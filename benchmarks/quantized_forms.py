"""Which way of writing quantized layers does the builder reward? Builds each, reads its plan.

    python benchmarks/quantized_forms.py > docs/quantized_forms.md

FP16 networks for SM89; no GPU is needed. How weights are given their scales follows these tables
(`singlecard.precision.weights`, `singlecard.precision.quantize`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from singlecard.engine.cards import find_card
from singlecard.engine.plan_report import PlanReport, read_plan_log
from singlecard.engine.roofline import roofline
from singlecard.errors import BuildError, LoweringError
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.flavour import flavour_name, flavour_version, tensorrt
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

TYPE = torch.float16
CARD = "RTX 4090"


@dataclass(frozen=True)
class Form:
    """One way to quantize a layer.

    Attributes:
        name: for the table.
        kind: type of the codes, or "" for FP16.
        by: how weights are scaled: "tensor", "channel", "block", or "gains" (one scale for the
            builder, and the rest multiplied into the result).
        scale: type of the scales.
        rounding: whether what is computed at run time is rounded too.
        residual: whether the other operand of a residual addition is rounded as well.
    """

    name: str
    kind: str = ""
    by: str = "tensor"
    scale: torch.dtype = torch.float32
    rounding: bool = True
    residual: bool = False


FORMS = (
    Form("FP16"),
    Form("INT8, scale of the tensor", "int8"),
    Form("INT8, scales of channels in FP32", "int8", "channel"),
    Form("INT8, scales of channels in FP16", "int8", "channel", TYPE),
    Form("INT8, one scale and gains", "int8", "gains"),
    Form("INT8, one scale and gains, residual operands too", "int8", "gains", residual=True),
    Form("FP8, one scale and gains", "fp8", "gains"),
    Form("INT8 weights, scale of the tensor", "int8", "tensor", rounding=False),
    Form("INT8 weights, scales of channels in FP16", "int8", "channel", TYPE, False),
    Form("INT8 weights, one scale and gains", "int8", "gains", rounding=False),
    Form("INT4 weights, blocks of 128", "int4", "block", TYPE, False),
)

_TOP = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}


class Writer:
    """Writes layers of one form into a network, with seeded weights."""

    def __init__(self, form: Form) -> None:
        self.form, self.net = form, Net()
        self.random = torch.Generator().manual_seed(0)

    def values(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random) * 0.02

    def vector(self, rank: int, axis: int, size: int) -> Tensor:
        shape = [size if place == axis else 1 for place in range(rank)]
        return self.net.constant(self.values(*shape).to(TYPE))

    def weight(self, *shape: int) -> Tensor:
        form, net, weight = self.form, self.net, self.values(*shape)
        if not form.kind:
            return net.constant(weight.to(TYPE))
        if form.by == "block":
            blocks = weight.reshape(shape[0], -1, 128)
            scale = (blocks.abs().amax(2) / _TOP[form.kind]).to(form.scale)
            steps = blocks / scale[..., None].float()
            codes = steps.round().clamp(-7, 7).to(torch.int8).reshape(shape)
            return net.dequantize(net.constant_int4(codes), net.constant(scale), TYPE)
        axes = tuple(range(1, len(shape)))
        largest = weight.abs()
        largest = largest.amax(axes, keepdim=True) if form.by == "channel" else largest.max()
        scale = (largest / _TOP[form.kind]).to(form.scale)
        steps = weight / scale.float()
        if form.kind == "fp8":
            codes = steps.to(torch.float8_e4m3fn)
        else:
            codes = steps.round().to(torch.int8)
        return net.dequantize(net.constant(codes), net.constant(scale), TYPE)

    def rounded(self, x: Tensor, kind: str | None = None) -> Tensor:
        form, net = self.form, self.net
        if kind is None and not (form.kind and form.rounding):
            return x
        dtype = torch.float8_e4m3fn if (kind or form.kind) == "fp8" else torch.int8
        scale = net.scalar(0.02, form.scale)
        return net.dequantize(net.quantize(x, scale, dtype), scale, TYPE)

    def finished(self, y: Tensor, axis: int, size: int, bias: bool = True) -> Tensor:
        if self.form.by == "gains":
            y = self.net.prod(y, self.vector(y.ndim, axis, size))
        return self.net.sum(y, self.vector(y.ndim, axis, size)) if bias else y

    def linear(self, x: Tensor, out: int, bias: bool = True) -> Tensor:
        weight = self.weight(out, x.shape[-1])
        y = self.net.matmul(self.rounded(x), weight, transpose_b=True)
        return self.finished(y, y.ndim - 1, out, bias)

    def convolution(self, x: Tensor, out: int) -> Tensor:
        weight = self.weight(out, x.shape[1], 3, 3)
        given = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
        y = self.net.convolution(self.rounded(x), weight, None, **given)  # type: ignore[arg-type]
        return self.finished(y, 1, out)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        chosen = getattr(tensorrt().ActivationType, kind)
        return self.net.output_of(self.net.add("activation", x.handle, chosen))

    def report(self, result: Tensor) -> PlanReport:
        self.net.mark_output(result, "y")
        file = io.BytesIO()
        messages = build_plan(self.net, {}, BuildSettings(targets=("sm89",)), file)
        return read_plan_log(messages, len(file.getvalue()))


def feed_forward(form: Form, rows: int) -> PlanReport:
    """Linear 1024 to 4096, GELU, linear back, residual."""
    writer = Writer(form)
    x = writer.net.input("x", TYPE, (rows, 1024))
    hidden = writer.activation(writer.linear(x, 4096), "GELU_ERF")
    other = writer.rounded(x) if form.residual else x
    return writer.report(writer.net.sum(writer.linear(hidden, 1024), other))


def residual(form: Form, channels: int, side: int) -> PlanReport:
    """Two residual blocks of two 3x3 convolutions with ReLU."""
    if form.by == "block":
        raise LoweringError("blocks are for matrices")
    writer = Writer(form)
    x = writer.net.input("x", TYPE, (1, channels, side, side))
    for _ in range(2):
        inner = writer.activation(writer.convolution(x, channels), "RELU")
        other = writer.rounded(x) if form.residual else x
        x = writer.activation(writer.net.sum(writer.convolution(inner, channels), other), "RELU")
    return writer.report(x)


@dataclass(frozen=True)
class Block:
    """How two encoder layers (12 heads of 32, 128 tokens) are quantized."""

    name: str
    linear: bool = False
    one_scale: bool = False
    attention: bool = False
    residual: bool = False


BLOCKS = (
    Block("FP16"),
    Block("linear layers in INT8, each with a scale of its own", True),
    Block("the same; query, key and value share one scale", True, True),
    Block("the same, and attention's products in INT8", True, True, True),
    Block("the same, and residual operands in INT8", True, True, True, True),
    Block("attention's products alone in INT8", attention=True),
)


class EncoderWriter(Writer):
    """Writes encoder layers; weights that share a scale are given the same number."""

    def __init__(self, block: Block) -> None:
        super().__init__(Form("", "int8", "gains") if block.linear else Form(""))
        self.block = block

    def weight(self, *shape: int) -> Tensor:
        if not (self.block.linear and self.block.one_scale):
            return super().weight(*shape)
        codes = (self.values(*shape) / 0.001).round().clamp(-127, 127).to(torch.int8)
        scale = self.net.scalar(0.001, torch.float32)
        return self.net.dequantize(self.net.constant(codes), scale, TYPE)

    def layer(self, x: Tensor) -> Tensor:
        net, (batch, length, width) = self.net, x.shape
        heads = 12
        parts = [self.linear(x, width, bias=place == 0) for place in range(3)]
        parts = [net.reshape(part, (batch, length, heads, width // heads)) for part in parts]
        q, k, v = (net.permute(part, (0, 2, 1, 3)) for part in parts)
        q = net.times(q, 1 / math.sqrt(width // heads))
        if self.block.attention:
            q, k, v = (self.rounded(part, "int8") for part in (q, k, v))
        seen = net.softmax(net.matmul(q, k, transpose_b=True), 3)
        if self.block.attention:
            seen = self.rounded(seen, "int8")
        attended = net.permute(net.matmul(seen, v), (0, 2, 1, 3))
        attended = net.reshape(attended, (batch, length, width))
        other = self.rounded(x) if self.block.residual else x
        x = self.norm(net.sum(self.linear(attended, width), other))
        hidden = self.activation(self.linear(x, 4 * width), "GELU_ERF")
        other = self.rounded(x) if self.block.residual else x
        return self.norm(net.sum(self.linear(hidden, width), other))

    def norm(self, x: Tensor) -> Tensor:
        scale, shift = (self.vector(3, 2, x.shape[2]) for _ in range(2))
        return self.net.normalization(x, scale, shift, [2], 1e-5)


def encoder(block: Block, batch: int) -> PlanReport:
    writer = EncoderWriter(block)
    x = writer.net.input("x", TYPE, (batch, 128, 384))
    for _ in range(2):
        x = writer.layer(x)
    return writer.report(x)


def row(name: str, make: Callable[[], PlanReport]) -> str:
    try:
        report = make()
    except (BuildError, LoweringError):
        return f"| {name} | | | | |"
    bound = roofline(report, find_card(CARD))
    assert bound is not None and report.bytes_moved is not None
    types = ", ".join(f"{count} {kind}" for kind, count in report.arithmetic_by_type.items())
    return (
        f"| {name} | {report.kernel_count} | {report.bytes_moved / 1e6:.2f} | {types} | "
        f"{bound.seconds * 1e6:.1f} |"
    )


def lines() -> Iterator[str]:
    yield "# Forms of quantized layers"
    yield ""
    yield f"`{flavour_name()}` {flavour_version()}, SM89, `python benchmarks/quantized_forms.py`."
    yield f"Time is the roofline's on an {CARD}, without launches. No engine has run on a card."
    head = [
        "",
        "| form | kernels | MB moved | products | us |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for rows in (1, 128, 1024):
        yield ""
        yield f"## Feed-forward block, {rows} row{'s' if rows > 1 else ''}"
        yield from head
        for form in FORMS:
            yield row(form.name, partial(feed_forward, form, rows))
    for channels, side in ((64, 56), (256, 14), (512, 7)):
        yield ""
        yield f"## Residual blocks of convolutions, {channels} channels of {side} x {side}"
        yield from head
        for form in FORMS[:-1]:
            yield row(form.name, partial(residual, form, channels, side))
    for batch in (1, 8):
        yield ""
        yield f"## Two encoder layers, batch {batch}, 128 tokens"
        yield from head
        for block in BLOCKS:
            yield row(block.name, partial(encoder, block, batch))


if __name__ == "__main__":
    print("\n".join(lines()))
