"""Weights moved onto the grid of weight-only quantization, by GPTQ or each to the nearest value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Group
from torch import nn

from singlecard.errors import CalibrationError, OptionError
from singlecard.report.plan_rows import Grid
from singlecard.report.render import table_of
from singlecard.report.tables import text_of
from singlecard_calib.feeding import calls, check_evaluation
from singlecard_calib.gptq import LARGEST, gptq, nearest, squared_output_error
from singlecard_calib.hessians import hessians_of, order_of, turns_of
from singlecard_calib.layers import Layer, Left, layers_of, left_grid, shape_text

Method = Literal["gptq", "round"]

#: Sizes of blocks that INT4 engines take.
BLOCK_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class RoundedLayer:
    """What became of one layer's weight. Errors are relative, of the whole matrix.

    Attributes:
        name: path of its module.
        shape: [outputs, inputs].
        weight_error: norm of the weight's change over its norm.
        output_error: norm of the change of the layer's outputs over that of the outputs (without
            bias), on the calibration data; None for ``method="round"``.
        nearest_output_error: the same, had each weight been rounded to the nearest.
        tied: other parameters that are the same memory, and were rounded with it.
    """

    name: str
    shape: tuple[int, int]
    weight_error: float
    output_error: float | None = None
    nearest_output_error: float | None = None
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundingReport:
    """What `round_weights` did. Prints as a table.

    Attributes:
        bits: 4 or 8.
        block_size: inputs that share a scale; None for a scale for each output.
        method: ``"gptq"`` or ``"round"``.
        samples: calls of the model that were used.
        layers: those that were rounded, in the order they were.
        left: those that were left, as ``(name, reason)``.
    """

    bits: int
    block_size: int | None
    method: str
    samples: int
    layers: tuple[RoundedLayer, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        rows = [
            (
                layer.name + "".join(f"\n= {name}" for name in layer.tied),
                shape_text(layer.shape),
                f"{layer.weight_error:.2%}",
                _percent(layer.output_error),
                _percent(layer.nearest_output_error),
            )
            for layer in self.layers
        ]
        columns: tuple[str, ...] = ("layer", "weight", "weight error>")
        if self.method == "gptq":
            columns = (*columns, "output error>", "of plain rounding>")
        by = f"blocks of {self.block_size}" if self.block_size else "by output"
        title = f"Rounded to INT{self.bits}, {by}, {self.method}"
        note = f"{self.samples} calls" if self.samples else ""
        cells = tuple(row[: len(columns)] for row in rows)
        parts = [table_of(Grid(title, columns, cells, note))]
        if self.left:
            parts.append(table_of(left_grid(self.left, "Not rounded")))
        return text_of(Group(*parts))


def round_weights(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    method: Method = "gptq",
    damping: float = 0.01,
    modules: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str = (),
) -> RoundingReport:
    """Move weights of linear layers, in place, to values that weight-only quantization holds.

    Afterwards ``precision="int4-weight"`` finds exactly these values, and ``"int8-weight"`` exactly
    these codes, as long as no calibration table with smoothing changes the weights, and
    ``block_size`` is the one that is taken: the largest of 128, 64 and 32 that divides the inputs.

    A weight is ``code * scale``: codes of -7 to 7 with a scale for each output and ``block_size``
    consecutive inputs, or -127 to 127 with a scale for each output. Scales are those of least
    squared error of 21 that let up to half of a block's range saturate, rounded to FP16, so that
    the product is exact in FP32. FP16 and BF16 weights take the nearest value that they hold, from
    which the same codes are found.

    ``method="gptq"`` passes each weight's error on to those behind it, such that the layer's
    outputs on the data change least; outputs for which that fails keep plain rounding. Layers are
    rounded in the order they first run, in up to 8 turns; each turn runs all data through the
    model with the layers of the turns before already rounded. A turn holds one FP32 matrix
    [inputs, inputs] for each of its layers, in at most 1 GiB or one layer; turns are more if that
    needs it. A first run looks at all inputs, and nothing is changed if they are not finite.

    Args:
        model: in evaluation mode, if it runs.
        data: calls of the model, as `singlecard.calibrate` takes them; they are held in memory,
            for each turn needs them. ``method="round"`` does without, and does not look at them.
        bits: 4 or 8.
        block_size: 32, 64 or 128; of no meaning for 8 bits.
        method: ``"gptq"``, or ``"round"`` for each weight to the nearest.
        damping: share of the mean of the Hessian's diagonal that is added to it: above 0, at
            most 1. Ten times as much is taken where that is not enough.
        modules: names of modules to round, with all that lies in them; ``*`` stands for any text.
        exclude: names of modules to leave, in the same way.

    Raises:
        OptionError: an argument is not valid, or the model has no linear layer.
        CalibrationError: no data, NaN or infinite inputs of a layer, a model in training mode.

    Source: `singlecard_calib.gptq`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(128, 4).eval()
        >>> report = round_weights(model, [torch.randn(64, 128)])
        >>> report.layers[0].output_error < 0.2
        True
    """
    _check(bits, block_size, method, damping)
    layers, left = layers_of(model, modules, exclude, convolutions=False)
    block = block_size if bits == 4 else None
    layers = _fitting(layers, left, bits, block)
    rounding = _Rounding(LARGEST[bits], block, damping)
    if method == "round":
        rows = tuple(rounding.plainly(layer) for layer in layers)
        return RoundingReport(bits, block, method, 0, rows, tuple(left))
    if data is None:
        raise CalibrationError(
            "method='gptq' needs calibration data: give calls of the model, or take method='round'"
        )
    check_evaluation(model)
    held = list(calls(data))
    order = order_of(model, held, layers)
    for layer in layers:
        if layer not in order:
            reason = "no call of the data runs it as a module; method='round' needs none"
            left.append(Left(layer.name, reason))
    done: list[RoundedLayer] = []
    for turn in turns_of(order):
        hessians = hessians_of(model, held, turn)
        done += [rounding.by_inputs(layer, hessians.pop(0)) for layer in turn]
    return RoundingReport(bits, block, method, len(held), tuple(done), tuple(left))


def _check(bits: int, block_size: int, method: str, damping: float) -> None:
    if bits not in LARGEST:
        raise OptionError(f"bits={bits!r} is not valid: 4 or 8")
    if bits == 4 and block_size not in BLOCK_SIZES:
        raise OptionError(f"block_size={block_size!r} is not valid: 32, 64 or 128")
    if method not in ("gptq", "round"):
        raise OptionError(f"method={method!r} is not valid: 'gptq' or 'round'")
    if not isinstance(damping, (int, float)) or not 0 < damping <= 1:
        raise OptionError(f"damping={damping!r} is not valid: above 0, and at most 1")


def _fitting(
    layers: Sequence[Layer], left: list[Left], bits: int, block: int | None
) -> list[Layer]:
    """Return the layers that can be on the grid; name the others."""
    fitting = []
    for layer in layers:
        inputs = layer.weight.shape[layer.input_axis]
        if block is not None and inputs % block:
            reason = f"blocks of {block} need inputs in multiples of it, got {inputs}"
            left.append(Left(layer.name, reason))
        elif bits == 8 and layer.weight.dtype == torch.bfloat16:
            reason = "BF16 has 8 bits for a value, too few to find 8-bit codes again"
            left.append(Left(layer.name, reason))
        else:
            fitting.append(layer)
    return fitting


@dataclass(frozen=True)
class _Rounding:
    """Rounds single layers; ``block`` is None for one scale for each output."""

    largest: int
    block: int | None
    damping: float

    def plainly(self, layer: Layer) -> RoundedLayer:
        weight = _matrix(layer)
        return self.put(layer, weight, nearest(weight, self.largest, self.width(weight)))

    def by_inputs(self, layer: Layer, hessian: torch.Tensor) -> RoundedLayer:
        weight = _matrix(layer)
        block = self.width(weight)
        plain = nearest(weight, self.largest, block)
        values = gptq(weight, hessian, self.largest, block, self.damping)
        was = squared_output_error(plain - weight, hessian)
        better = squared_output_error(values - weight, hessian) < was
        return self.put(layer, weight, values.where(better[:, None], plain), hessian, was)

    def width(self, weight: torch.Tensor) -> int:
        return weight.shape[1] if self.block is None else self.block

    def put(
        self,
        layer: Layer,
        weight: torch.Tensor,
        values: torch.Tensor,
        hessian: torch.Tensor | None = None,
        was: torch.Tensor | None = None,
    ) -> RoundedLayer:
        layer.write(values.T if layer.input_axis == 0 else values)
        change = _matrix(layer) - weight  # of what the weight's type really holds
        rows, columns = weight.shape
        error = _relative(change.square().sum(), weight.square().sum())
        if hessian is None or was is None:
            return RoundedLayer(layer.name, (rows, columns), error, tied=layer.tied)
        whole = squared_output_error(weight, hessian).sum()
        output = _relative(squared_output_error(change, hessian).sum(), whole)
        plain = _relative(was.sum(), whole)
        return RoundedLayer(layer.name, (rows, columns), error, output, plain, layer.tied)


def _matrix(layer: Layer) -> torch.Tensor:
    """Return a copy of the weight, FP32 [outputs, inputs]."""
    weight = layer.weight.detach()
    return (weight.T if layer.input_axis == 0 else weight).to(torch.float32, copy=True).contiguous()


def _relative(squares: torch.Tensor, whole: torch.Tensor) -> float:
    return float((squares / whole).sqrt()) if whole > 0 else 0.0


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
