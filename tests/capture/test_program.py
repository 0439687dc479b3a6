"""A Program keeps its rules: functional, typed, nothing lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from singlecard.capture.program import module_path, source_line, with_effects
from singlecard.errors import CaptureError
from tests.graphs import program_of

aten = torch.ops.aten


def test_mutable_op_is_refused() -> None:
    """An op that writes to its argument inside an engine would write to nothing."""
    program = program_of(lambda x: x + 1, torch.ones(2))
    next(program.calls()).target = aten.add_.Tensor
    with pytest.raises(CaptureError, match="add_.Tensor changes its arguments"):
        program.check()


def test_foreign_function_is_refused() -> None:
    """A Python function in the graph has no meaning that could be lowered."""
    program = program_of(lambda x: x + 1, torch.ones(2))
    next(program.calls()).target = nn.functional.relu
    with pytest.raises(CaptureError, match="is not an ATen op"):
        program.check()


def test_effect_of_a_foreign_op_is_refused() -> None:
    """What is run for its effect runs in PyTorch, which must know how."""
    program = program_of(lambda x: x + 1, torch.ones(2))
    (call,) = program.calls()
    call.target, call.args = with_effects, (program.placeholders[0], torch.ops.higher_order.print)
    with pytest.raises(CaptureError, match="print is run for its effect, and no ATen op"):
        program.check()
    call.args = (program.placeholders[0], torch.ops.aten._print.default, "text")
    program.check()


def test_module_call_is_refused() -> None:
    """A module that was not traced through would be lost as a whole."""
    program = program_of(lambda x: x + 1, torch.ones(2))
    program.module.add_module("layer", nn.ReLU())
    with program.graph.inserting_before(program.graph.output_node()):
        program.graph.call_module("layer", (program.placeholders[0],))
    with pytest.raises(CaptureError, match="call_module"):
        program.check()


def test_untyped_value_is_refused() -> None:
    """A rewrite that forgets a value's type would make lowering guess."""
    program = program_of(lambda x: x + 1, torch.ones(2))
    del next(program.calls()).meta["val"]
    with pytest.raises(CaptureError, match="nothing is known of the value of add"):
        program.check()


def test_weights_are_constants_and_inputs_are_not() -> None:
    """Weights that stay inputs cost several times the kernels; frozen inputs give one answer."""
    program = program_of(nn.Linear(4, 4), torch.ones(2, 4))
    assert len(program.placeholders) == 1
    assert len(program.frozen) == 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_ops_lead_back_to_modules_and_lines() -> None:
    """A kernel or a refusal without a place sends the user through the whole model."""
    program = program_of(Block(), torch.ones(2, 4))
    linear, relu = program.calls()
    assert module_path(linear).endswith("inner.0") and module_path(relu).endswith("inner.1")
    program = program_of(lambda x: x.sin(), torch.ones(2))
    assert source_line(next(program.calls())).endswith(
        "program_of(lambda x: x.sin(), torch.ones(2))"
    )
