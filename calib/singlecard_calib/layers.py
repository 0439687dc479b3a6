"""The layers of a model whose weights are changed in place, and why the others are left."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from singlecard.errors import OptionError
from singlecard.report.plan_rows import Grid

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

#: What the root module is called in reports.
ROOT = "(the model)"


class Left(NamedTuple):
    """A layer that was left as it is, and why, as one sentence."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight, with all modules that multiply by it.

    Attributes:
        name: of the first module.
        modules: the linear or convolution modules.
        tensors: the weight, as often as the model holds its memory as parameters of its own.
        input_axis: axis of the weight along which the input's channels lie.
        tied: other parameters that are the same memory, by name.
    """

    name: str
    modules: tuple[nn.Module, ...]
    tensors: tuple[torch.Tensor, ...]
    input_axis: int
    tied: tuple[str, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        return self.tensors[0]

    def write(self, values: torch.Tensor) -> None:
        """Replace the weight's values, so that every parameter's version counter grows."""
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.copy_(values)


def layers_of(
    model: nn.Module,
    modules: Sequence[str] | str | None,
    exclude: Sequence[str] | str,
    convolutions: bool,
) -> tuple[list[Layer], list[Left]]:
    """Find linear layers, and convolutions if asked for, by weight.

    Args:
        model: also one that `torch.compile` returned.
        modules: names, as the option ``exclude_modules`` takes them: each stands for all that lies
            in it, ``*`` for any text. None: all.
        exclude: names of what is left, in the same way. A weight that an excluded module shares is
            left too.
        convolutions: whether they are layers as well.

    Raises:
        OptionError: a name is of no module, or the model has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"weights are changed in an nn.Module, got {type(model).__name__}")
    root = getattr(model, "_orig_mod", model)
    wanted = None if modules is None else _patterns(modules)
    unwanted = _patterns(exclude)
    paths = [path for path, _ in root.named_modules(remove_duplicate=False)]
    for pattern in (*(wanted or ()), *unwanted):
        _check_name(pattern, paths)
    found = [
        (path, module, axis)
        for path, module in root.named_modules()
        if (axis := _input_axis(module, convolutions)) is not None
        and (wanted is None or _is_among(path, wanted))
        and not _is_among(path, unwanted)
    ]
    if not found:
        kinds = "linear layer or convolution" if convolutions else "linear layer"
        chosen = "" if wanted is None and not unwanted else " among the modules chosen"
        raise OptionError(f"{type(root).__name__} has no {kinds}{chosen}")
    return _by_weight(found, list(_owners(root)), unwanted)


class _Owner(NamedTuple):
    place: tuple[Any, ...]
    path: str
    parameter: str
    tensor: torch.Tensor


def _by_weight(
    found: Sequence[tuple[str, nn.Module, int]], owners: Sequence[_Owner], unwanted: Sequence[str]
) -> tuple[list[Layer], list[Left]]:
    layers: dict[tuple[Any, ...], Layer] = {}
    left: list[Left] = []
    by_place: dict[tuple[Any, ...], list[_Owner]] = {}
    for owner in owners:
        by_place.setdefault(owner.place, []).append(owner)
    for path, module, axis in found:
        name = path or ROOT
        reason = _refusal(module)
        if reason is not None:
            left.append(Left(name, reason))
            continue
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        sharing = by_place[_place(weight)]
        kept = [owner.path for owner in sharing if _is_among(owner.path, unwanted)]
        if kept:
            left.append(Left(name, f"its weight is that of {kept[0]} too, which is excluded"))
            continue
        key = (*_place(weight), axis)
        known = layers.get(key)
        if known is not None:
            layers[key] = Layer(
                known.name, (*known.modules, module), known.tensors, axis, known.tied
            )
            continue
        distinct = {id(tensor): tensor for tensor in (weight, *(item.tensor for item in sharing))}
        tied = [item.parameter for item in sharing if item.path != path]
        layers[key] = Layer(name, (module,), tuple(distinct.values()), axis, tuple(tied))
    return list(layers.values()), left


def _owners(root: nn.Module) -> Iterator[_Owner]:
    for path, module in root.named_modules(remove_duplicate=False):
        for name, tensor in module._parameters.items():
            if tensor is not None and _unfit(tensor) is None:
                yield _Owner(_place(tensor), path, f"{path}.{name}" if path else name, tensor)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _input_axis(module: nn.Module, convolutions: bool) -> int | None:
    if isinstance(module, nn.Linear):
        return 1
    if is_transposed_linear(module):
        return 0
    if convolutions and isinstance(module, _CONVOLUTIONS):
        return 0 if isinstance(module, _TRANSPOSED) else 1
    return None


def is_transposed_linear(module: nn.Module) -> bool:
    """Tell whether it is the Conv1D of transformers, which keeps its weight as [in, out]."""
    weight, width = getattr(module, "weight", None), getattr(module, "nf", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, torch.Tensor)
        and weight.ndim == 2
        and weight.shape[1] == width
    )


def _refusal(module: nn.Module) -> str | None:
    """Return why a module's weight cannot be replaced, or None where it can."""
    if parametrize.is_parametrized(module, "weight"):
        return (
            "its weight is worked out by a parametrization on each call: call "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') first"
        )
    if "weight_orig" in module._parameters:
        return (
            "its weight is worked out from weight_orig on each call: call "
            "torch.nn.utils.prune.remove(module, 'weight') first, or remove_spectral_norm"
        )
    weight = module._parameters.get("weight")
    if weight is None:
        return (
            "its weight is no parameter of its own, and would be replaced on the next call, as "
            "weight norm does: call torch.nn.utils.remove_weight_norm(module) first"
        )
    reason = _unfit(weight)
    if reason is None and not bool(torch.isfinite(weight).all()):
        return "its weight has NaN or infinite values"
    return reason


def _unfit(weight: torch.Tensor) -> str | None:
    if type(weight) not in (nn.Parameter, torch.Tensor):
        return f"its weight is {type(weight).__name__}, and no plain tensor"
    if weight.is_meta:
        return "its weight is on the meta device, and has no values"
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return f"its weight has type {weight.dtype}"
    if weight.is_inference():
        return "its weight was made in inference mode, and keeps no count of its changes"
    return None if weight.numel() else "its weight is empty"


def _patterns(names: Sequence[str] | str) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else names
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise OptionError(f"modules are given by name, as a list of texts, got {names!r}")
    return tuple(given)


def _is_among(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, item) or fnmatchcase(path, f"{item}.*") for item in patterns)


def _check_name(pattern: str, paths: Sequence[str]) -> None:
    if not any(_is_among(path, (pattern,)) for path in paths):
        near = difflib.get_close_matches(pattern, paths, 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"the model has no module {pattern!r}{hint}")


def left_grid(left: Sequence[Left], title: str) -> Grid:
    """Return what was left, and why, as a table."""
    return Grid(title, ("layer", "why"), tuple((item.name, item.reason) for item in left))


def shape_text(shape: Sequence[int]) -> str:
    return " x ".join(str(extent) for extent in shape)
