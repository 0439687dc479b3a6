"""Models that were left in training mode, where that changes what they answer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from singlecard.errors import OptionError


def check_evaluation(model: Callable[..., Any]) -> None:
    """Refuse a model of which a part answers otherwise than it will in use.

    Raises:
        OptionError: it names the part, and the cure.
    """
    problem = training_problem(model)
    if problem:
        raise OptionError(problem)


def training_problem(model: Callable[..., Any], every_part: bool = False) -> str:
    """Return what is wrong with a model that is in training mode, or "".

    Args:
        model: a module, or a function that holds some.
        every_part: whether parts count too whose answers do not depend on the mode, such as
            `torch.nn.Linear`.
    """
    known: dict[type, bool] = {}
    for root in _modules_of(model):
        for name, module in root.named_modules():
            if module.training and (every_part or _depends_on_mode(module, known)):
                part = "the model" if root.training else f"the model's {name}"
                return (
                    f"{part} is in training mode, in which dropout and batch norm behave "
                    "otherwise: call model.eval() first"
                )
    return ""


def _modules_of(model: Any) -> Iterator[nn.Module]:
    """Give a model, or the modules that a function holds."""
    if isinstance(model, nn.Module):
        yield model
    elif isinstance(model, functools.partial):
        for part in (model.func, *model.args, *model.keywords.values()):
            yield from _modules_of(part)
    elif isinstance(model, MethodType):
        if isinstance(model.__self__, nn.Module):
            yield model.__self__
        yield from _modules_of(model.__func__)
    elif isinstance(model, FunctionType):
        for value in inspect.getclosurevars(model).nonlocals.values():
            if isinstance(value, nn.Module):
                yield value
        names = model.__code__.co_names
        for value in (model.__globals__.get(name) for name in names):
            if isinstance(value, nn.Module):
                yield value


def _depends_on_mode(module: nn.Module, known: dict[type, bool]) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, _NormBase):  # without statistics they are the batch's in both modes
        return module.running_mean is not None
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder, fx.GraphModule)):
        # Two choose a faster path by it, and have dropouts as parts; the third copies the flag.
        return False
    kind = type(module)
    if kind not in known:
        known[kind] = _reads_mode(kind)
    return known[kind]


def _reads_mode(kind: type[nn.Module]) -> bool:
    """Tell whether the code of a class of modules reads ``self.training``."""
    for base in kind.__mro__:
        if base is nn.Module:
            return False
        for name, value in vars(base).items():
            function = getattr(value, "__func__", value)
            if name not in ("train", "eval") and isinstance(function, FunctionType):
                if _reads(function.__code__):
                    return True
    return False


def _reads(code: CodeType) -> bool:
    inner = (item for item in code.co_consts if isinstance(item, CodeType))
    return "training" in code.co_names or any(map(_reads, inner))
