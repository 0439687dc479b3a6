"""Magnitude pruning: weights near zero become zero, anywhere or in the 2:4 pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Group
from torch import nn
from torch.utils import _pytree as pytree

from singlecard.errors import OptionError
from singlecard.report.plan_rows import Grid
from singlecard.report.render import table_of
from singlecard.report.tables import text_of
from singlecard.report.verify import compare
from singlecard_calib.feeding import Call, calls, check_evaluation, run
from singlecard_calib.layers import Layer, Left, layers_of, left_grid, shape_text

Pattern = Literal["unstructured", "2:4"]
Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer's weight.

    Attributes:
        name: path of its module.
        shape: of the weight.
        zeros_before, zeros_after: elements that are zero.
        removed_l1: share of the weight's L1 norm that was removed, 0 to 1.
        removed_squared: share of its squared L2 norm, 0 to 1.
        tied: other parameters that are the same memory, and were pruned with it.
    """

    name: str
    shape: tuple[int, ...]
    zeros_before: int
    zeros_after: int
    removed_l1: float
    removed_squared: float
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class PruningReport:
    """What `prune` did. Prints as a table.

    Attributes:
        pattern: ``"unstructured"`` or ``"2:4"``.
        layers: those that were pruned.
        left: those that were left, as ``(name, reason)``.
        output_error: relative L2 error of the model's outputs on the data against those before,
            all calls and outputs together; infinite where shapes or NaN differ; None without data
            or floating-point outputs.
    """

    pattern: str
    layers: tuple[PrunedLayer, ...]
    left: tuple[Left, ...]
    output_error: float | None

    def __str__(self) -> str:
        rows = []
        for layer in self.layers:
            total = 1
            for extent in layer.shape:
                total *= extent
            rows.append(
                (
                    layer.name + "".join(f"\n= {name}" for name in layer.tied),
                    shape_text(layer.shape),
                    f"{layer.zeros_before / total:.1%}",
                    f"{layer.zeros_after / total:.1%}",
                    f"{layer.removed_l1:.1%}",
                    f"{layer.removed_squared:.1%}",
                )
            )
        columns = ("layer", "weight", "zeros before>", "after>", "L1 removed>", "squares removed>")
        error = self.output_error
        note = "" if error is None else f"Relative L2 error of the outputs: {error:.2e}"
        parts = [table_of(Grid(f"Pruned, {self.pattern}", columns, tuple(rows), note))]
        if self.left:
            parts.append(table_of(left_grid(self.left, "Not pruned")))
        return text_of(Group(*parts))


def prune(
    model: nn.Module,
    amount: float | None = None,
    pattern: Pattern = "unstructured",
    *,
    scope: Scope = "layer",
    modules: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str = (),
    data: Iterable[Any] | None = None,
) -> PruningReport:
    """Set the weights of least magnitude to zero, in place.

    Weights of linear layers (``nn.Linear``, and the ``Conv1D`` of transformers) and convolutions,
    transposed ones too; biases stay. What a compiled model computes follows: the weights' version
    counters grow. A weight that several modules share is pruned once.

    Args:
        model: in evaluation mode if there is ``data``.
        amount: share of the weights that become zero, above 0 and below 1; with ``"2:4"`` None or
            0.5. As many are zero in the end, those that were so before among them.
        pattern: ``"unstructured"``; or ``"2:4"``: of every 4 consecutive weights along the input
            channels, for each output channel and kernel position, the 2 of least magnitude become
            zero, of equal ones the first. That is the layout of sparse tensor cores; the option
            ``sparse_weights`` lets the builder use them.
        scope: ``"layer"``: the share is taken of each layer; ``"global"``: of all together.
        modules: names of modules to prune, with all that lies in them; ``*`` stands for any text.
        exclude: names of modules to leave, in the same way.
        data: calls to measure the outputs' error on, as `singlecard.calibrate` takes them. All
            outputs are held in memory meanwhile.

    Raises:
        OptionError: an argument is not valid, or the model has no such layer.
        CalibrationError: the data cannot be used, or the model is in training mode.

    Source: Han et al., "Learning both weights and connections for efficient neural networks", 2015;
    for 2:4, Mishra et al., "Accelerating sparse deep neural networks", 2021.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(8, 4)
        >>> prune(model, pattern="2:4").layers[0].zeros_after
        16
    """
    share = _checked(amount, pattern, scope)
    layers, left = layers_of(model, modules, exclude, convolutions=True)
    if pattern == "2:4":
        layers = _fitting(layers, left)
    held: list[Call] = []
    if data is not None:
        check_evaluation(model)
        held = list(calls(data))
    before = [_floats(run(model, call)) for call in held]
    masks: Iterable[torch.Tensor] = (_mask(layer, pattern, share) for layer in layers)
    if scope == "global":
        masks = _global_masks(layers, share)
    rows = tuple(_cut(layer, mask) for layer, mask in zip(layers, masks, strict=True))
    error = None
    if any(before):
        error = compare([_floats(run(model, call)) for call in held], before).relative_l2
    return PruningReport(pattern, rows, tuple(left), error)


def holds_2_4(weight: torch.Tensor, axis: int = 1) -> bool:
    """Tell whether of every 4 consecutive elements along an axis at least 2 are zero.

    Args:
        weight: such as [out, in] or [out, in, height, width].
        axis: that of the input channels: 1 for linear layers and convolutions, 0 for transposed
            convolutions and the ``Conv1D`` of transformers.

    Returns:
        False also where the extent is not a multiple of 4.
    """
    if weight.shape[axis] % 4:
        return False
    kept = weight.detach().unflatten(axis, (-1, 4)).count_nonzero(axis + 1)
    return bool((kept <= 2).all())


def _checked(amount: float | None, pattern: str, scope: str) -> float:
    if pattern not in ("unstructured", "2:4"):
        raise OptionError(f"pattern={pattern!r} is not valid: 'unstructured' or '2:4'")
    if scope not in ("layer", "global"):
        raise OptionError(f"scope={scope!r} is not valid: 'layer' or 'global'")
    if pattern == "2:4":
        if amount not in (None, 0.5):
            raise OptionError(f"amount={amount!r} is not valid: pattern='2:4' removes half, 0.5")
        if scope != "layer":
            raise OptionError(
                "scope='global' is not valid: pattern='2:4' removes half of each layer"
            )
        return 0.5
    if amount is None:
        raise OptionError("pattern='unstructured' needs an amount, such as 0.5 for half")
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 < amount < 1:
        raise OptionError(f"amount={amount!r} is not valid: a share above 0 and below 1")
    return float(amount)


def _fitting(layers: Sequence[Layer], left: list[Left]) -> list[Layer]:
    """Return the layers that 2:4 divides; name the others."""
    fitting = []
    for layer in layers:
        extent = layer.weight.shape[layer.input_axis]
        groups = getattr(layer.modules[0], "groups", 1)
        if layer.input_axis == 0:  # a transposed convolution has the channels of all groups there
            extent //= groups
        if extent % 4 == 0:
            fitting.append(layer)
        else:
            each = f" in each of {groups} groups" if groups != 1 else ""
            reason = f"2:4 needs input channels in multiples of 4, got {extent}{each}"
            left.append(Left(layer.name, reason))
    return fitting


def _mask(layer: Layer, pattern: str, share: float) -> torch.Tensor:
    """Return what stays, bool in the shape of the weight."""
    sizes = _magnitudes(layer)
    if pattern == "2:4":
        axis = layer.input_axis
        fours = sizes.unflatten(axis, (-1, 4))
        order = fours.argsort(dim=axis + 1, stable=True)
        stays = torch.ones_like(fours, dtype=torch.bool)
        return stays.scatter_(axis + 1, order.narrow(axis + 1, 0, 2), False).reshape(sizes.shape)
    return ~_least(sizes.flatten(), round(share * sizes.numel())).reshape(sizes.shape)


def _global_masks(layers: Sequence[Layer], share: float) -> list[torch.Tensor]:
    flat = torch.cat([_magnitudes(layer).flatten().cpu() for layer in layers])
    stays = ~_least(flat, round(share * flat.numel()))
    parts = stays.split([layer.weight.numel() for layer in layers])
    return [
        part.reshape(layer.weight.shape).to(layer.weight.device)
        for layer, part in zip(layers, parts, strict=True)
    ]


def _magnitudes(layer: Layer) -> torch.Tensor:
    weight = layer.weight.detach()
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).abs()


def _least(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Return which of [elements] are the ``count`` smallest; of equal ones the first."""
    if not count:
        return torch.zeros_like(sizes, dtype=torch.bool)
    limit = sizes.kthvalue(count).values
    chosen = sizes < limit
    equal = (sizes == limit).nonzero().flatten()
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def _cut(layer: Layer, stays: torch.Tensor) -> PrunedLayer:
    weight = layer.weight.detach()
    values = weight.double()
    gone = values[~stays]
    l1, squares = float(values.abs().sum()) or 1.0, float(values.square().sum()) or 1.0
    zeros = int((weight == 0).sum())
    layer.write(weight.where(stays, 0))
    return PrunedLayer(
        layer.name,
        tuple(weight.shape),
        zeros,
        int((weight == 0).sum()),
        float(gone.abs().sum()) / l1,
        float(gone.square().sum()) / squares,
        layer.tied,
    )


def _floats(outputs: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors in a nest of outputs, on the CPU."""
    return [
        leaf.detach().to("cpu", copy=True)
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
