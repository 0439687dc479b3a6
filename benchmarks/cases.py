"""What is measured: the models of `examples/models.py`, by name and precision."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

MODELS = ("resnet50", "vit_b16", "bert_base", "gpt2", "llama", "minilm")
PRECISIONS = ("fp32", "fp16")

#: The card that every engine here is built for.
TARGET = "sm89"

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def load_case(model: str) -> Case:
    """Return ``(module, args, kwargs)`` of a model in FP32."""
    examples = str(Path(__file__).parents[1] / "examples")
    if examples not in sys.path:
        sys.path.insert(0, examples)
    case: Case = getattr(importlib.import_module("models"), model)()
    return case


def in_half(case: Case) -> Case:
    """Return a case as a PyTorch user takes it to FP16: ``module.half()`` and FP16 inputs."""
    module, args, kwargs = case

    def half(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.half() if floating else value

    return (
        module.half(),
        tuple(half(value) for value in args),
        {name: half(value) for name, value in kwargs.items()},
    )
