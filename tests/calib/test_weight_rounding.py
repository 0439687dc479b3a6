"""Weights on the grid: that they are on it, and what GPTQ gains."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from singlecard.errors import CalibrationError, OptionError
from singlecard_calib import hessians, weight_rounding
from singlecard_calib.gptq import gptq, nearest, squared_output_error
from singlecard_calib.pruning import holds_2_4, prune
from singlecard_calib.weight_rounding import round_weights
from tests.calib.rounding import correlated, is_on_grid, linear


@pytest.mark.parametrize("method", ["gptq", "round"])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_blocks_lie_on_the_grid(method: Any, block: int) -> None:
    """The backend looks for each block's scale among largest / 1 to 7: off the grid, it rounds a
    second time, and what GPTQ gained is lost."""
    model = linear(256, 24)
    assert not is_on_grid(model.weight, block, 7)
    round_weights(model, [correlated(64, 256)], block_size=block, method=method)
    assert is_on_grid(model.weight, block, 7)


@pytest.mark.parametrize("method", ["gptq", "round"])
def test_rows_lie_on_the_grid(method: Any) -> None:
    """In INT8 the backend takes largest / 127, and nothing else."""
    model = linear(200, 24)
    assert not is_on_grid(model.weight, 200, 127)
    round_weights(model, [correlated(64, 200)], bits=8, method=method)
    assert is_on_grid(model.weight, 200, 127)
    weight = model.weight.detach()
    units = weight / (weight.abs().amax(1, keepdim=True) / 127)
    assert float((units - units.round()).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_hold_the_codes(dtype: torch.dtype) -> None:
    """Decoders are kept in half precision; the nearest such value must lead to the same code."""
    model = linear(128, 16, dtype=dtype)
    round_weights(model, [correlated(64, 128).to(dtype)])
    assert model.weight.dtype == dtype
    assert is_on_grid(model.weight, 128, 7, exact=dtype == torch.float64)


@pytest.mark.parametrize(("bits", "share"), [(4, 0.6), (8, 0.8)])
def test_outputs_change_less_than_with_plain_rounding(bits: int, share: float) -> None:
    """This is all that GPTQ is for; on inputs that it has not seen, too."""
    plain, model, eager = (linear(256, 64, bias=False) for _ in range(3))
    inputs, others = correlated(1024, 256), correlated(1280, 256)[1024:]
    report = round_weights(model, [inputs[:512], inputs[512:]], bits=bits)
    round_weights(plain, bits=bits, method="round")
    with torch.no_grad():
        expected = eager(others)
        error = float((model(others) - expected).norm())
        assert error < share * float((plain(others) - expected).norm())
        expected = eager(inputs)
        measured = float((model(inputs) - expected).norm() / expected.norm())
        rounded = float((plain(inputs) - expected).norm() / expected.norm())
    (row,) = report.layers
    assert row.output_error == pytest.approx(measured, rel=1e-2)
    assert row.nearest_output_error == pytest.approx(rounded, rel=1e-2)
    assert row.output_error < share * row.nearest_output_error


def test_no_output_becomes_worse() -> None:
    """Greedy rounding can lose where data are few: those outputs keep plain rounding."""
    weight = torch.randn(512, 128, generator=torch.Generator().manual_seed(4))
    inputs = torch.randn(2048, 128, generator=torch.Generator().manual_seed(5))
    hessian = 2 * inputs.T @ inputs
    plain = squared_output_error(nearest(weight, 7, 128) - weight, hessian)
    alone = squared_output_error(gptq(weight, hessian, 7, 128, 0.01) - weight, hessian)
    assert bool((alone > plain).any())  # so there is something to guard against
    model = nn.Linear(128, 512).eval()
    with torch.no_grad():
        model.weight.copy_(weight)
    round_weights(model, [inputs])
    kept = squared_output_error(model.weight.detach() - weight, hessian)
    assert bool((kept <= plain * (1 + 1e-4)).all())


def test_inputs_that_are_always_zero() -> None:
    """A channel that the data never reach is rounded to the nearest, and not dropped."""
    model = linear(128, 16)
    before = model.weight.detach().clone()
    inputs = correlated(256, 128)
    inputs[:, 40:50] = 0
    round_weights(model, [inputs])
    after = model.weight.detach()[:, 40:50]
    step = model.weight.abs().amax(1, keepdim=True)  # at least a code's step, whatever the code
    assert bool(torch.isfinite(after).all()) and bool(after.any())
    assert bool(((after - before[:, 40:50]).abs() <= step).all())
    assert float((after - before[:, 40:50]).norm() / before[:, 40:50].norm()) < 0.25


def test_a_layer_that_only_sees_zeros() -> None:
    """There is nothing to learn from, and still something to round."""
    model, plain = linear(128, 16), linear(128, 16)
    report = round_weights(model, [torch.zeros(4, 128)])
    round_weights(plain, method="round")
    assert torch.equal(model.weight, plain.weight)
    assert report.layers[0].output_error == 0.0


def test_fewer_samples_than_inputs() -> None:
    """A singular Hessian is the usual case for wide layers."""
    model = linear(256, 8)
    report = round_weights(model, [correlated(3, 256)], damping=1e-12)
    assert report.layers[0].output_error is not None
    assert bool(torch.isfinite(model.weight).all())


def test_pruned_weights_keep_their_pattern() -> None:
    """Sparse kernels need 2:4 and the grid at once."""
    model = linear(128, 16)
    prune(model, pattern="2:4")
    round_weights(model, [correlated(256, 128)])
    assert holds_2_4(model.weight) and is_on_grid(model.weight, 128, 7)


class Block(nn.Module):
    """Runs its layers in another order than it holds them, and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(128, 8)
        self.first = Conv1D(128, 128)
        self.unused = nn.Linear(128, 8)
        self.narrow = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.narrow(self.last(torch.relu(self.first(x * scale))))  # type: ignore[no-any-return]


def test_later_layers_are_calibrated_with_earlier_ones_rounded() -> None:
    """Their inputs are those of the rounded model; the error of the whole is less then."""
    torch.manual_seed(0)
    model = Block().eval()
    inputs = correlated(300, 128)
    report = round_weights(model, ({"x": inputs, "scale": 2.0} for _ in range(1)))
    assert [row.name for row in report.layers] == ["first", "last"]
    assert report.samples == 1
    assert is_on_grid(model.first.weight.T, 128, 7) and is_on_grid(model.last.weight, 128, 7)
    torch.manual_seed(0)
    last = Block().last.weight.detach()
    with torch.no_grad():
        fed = torch.relu(model.first(inputs * 2.0))  # by the rounded layer
    hessian = 2 * fed.T @ fed
    rounded = gptq(last, hessian, 7, 128, 0.01)
    plain = nearest(last, 7, 128)
    worse = squared_output_error(rounded - last, hessian) >= squared_output_error(
        plain - last, hessian
    )
    expected = plain.where(worse[:, None], rounded)
    assert float((model.last.weight == expected).float().mean()) > 0.95


class Beside(nn.Module):
    """More layers than there are turns, each with inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in range(11))

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [part(x) for part, x in zip(self.parts, inputs, strict=True)]


def test_each_layer_has_its_own_inputs() -> None:
    """Layers of one turn are watched in the same run: one's inputs say nothing of another's."""
    torch.manual_seed(0)
    model = Beside().eval()
    inputs = tuple(correlated(100, 32, seed) for seed in range(11))
    with torch.no_grad():
        expected = model(*inputs)
        report = round_weights(model, [inputs], block_size=32)
        outputs = model(*inputs)
    assert len(report.layers) == 11
    for row, got, want in zip(report.layers, outputs, expected, strict=True):
        assert row.output_error == pytest.approx(float((got - want).norm() / want.norm()), rel=1e-2)


def test_what_is_left_is_named() -> None:
    """A layer off the grid costs its accuracy when it is built: the user must know which."""
    torch.manual_seed(0)
    model = Block().eval()
    unused = model.unused.weight.detach().clone()
    report = round_weights(model, [correlated(64, 128)])
    left = dict(report.left)
    assert "multiples of it, got 8" in left["narrow"]
    assert "no call of the data runs it" in left["unused"]
    assert torch.equal(model.unused.weight, unused)
    half = round_weights(linear(8, 8, dtype=torch.bfloat16), bits=8, method="round")
    assert "BF16" in half.left[0].reason


def test_a_tied_weight_is_rounded_once_for_the_inputs_of_both() -> None:
    """Two modules of one weight: its Hessian is the sum of both."""
    first, second = linear(128, 128, bias=False), nn.Linear(128, 128, bias=False)
    second.weight = first.weight
    before = first.weight.detach().clone()
    model = nn.Sequential(first, nn.Tanh(), second).eval()
    inputs = correlated(256, 128)
    with torch.no_grad():
        all_inputs = torch.cat([inputs, torch.tanh(first(inputs))])
    report = round_weights(model, [inputs])
    (row,) = report.layers
    assert row.tied == ("2.weight",)
    change = first.weight.detach() - before
    error = float((all_inputs @ change.T).norm() / (all_inputs @ before.T).norm())
    assert row.output_error == pytest.approx(error, rel=1e-3)


def test_compiled_models_notice() -> None:
    """A version counter that stands still leaves the engine with the weights from before."""
    for method in ("gptq", "round"):
        model = linear(128, 8)
        weight, version = model.weight, model.weight._version
        round_weights(model, [correlated(64, 128)], method=method)
        assert model.weight is weight and weight._version > version


def test_a_compiled_model_is_calibrated() -> None:
    """Its compiled code calls no hooks, and would leave all layers out."""
    compiled: Any = torch.compile(nn.Sequential(linear(128, 8)).eval(), backend="eager")
    compiled(correlated(64, 128))
    report = round_weights(compiled, [correlated(64, 128)])
    assert [row.name for row in report.layers] == ["0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(value: float) -> None:
    """One such value would make the whole Hessian useless; nothing must have changed by then."""
    model = nn.Sequential(linear(128, 128), nn.Threshold(-1e9, value), linear(128, 8)).eval()
    with torch.no_grad():
        model[0].bias[3] = -2e9
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    with pytest.raises(CalibrationError, match="input of 2 has NaN or infinite"):
        round_weights(model, [correlated(64, 128)])
    for layer, weight in zip((model[0], model[2]), before, strict=True):
        assert torch.equal(layer.weight, weight)
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("data", "settings", "error", "said"),
    [
        (None, {}, CalibrationError, "needs calibration data"),
        ([], {}, CalibrationError, "no calibration data"),
        (None, {"bits": 3}, OptionError, "4 or 8"),
        (None, {"block_size": 100}, OptionError, "32, 64 or 128"),
        (None, {"method": "awq"}, OptionError, "'gptq' or 'round'"),
        (None, {"damping": 0}, OptionError, "above 0"),
        (None, {"modules": ["head"]}, OptionError, "no module 'head'"),
    ],
)
def test_arguments_that_are_not_valid(data: Any, settings: Any, error: Any, said: str) -> None:
    """Each says what was wrong, before the model has run for minutes."""
    with pytest.raises(error, match=said):
        round_weights(linear(128, 8), data, **settings)


def test_training_mode() -> None:
    """Dropout would be in the statistics."""
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        round_weights(nn.Linear(128, 8), [torch.ones(1, 128)])


def test_turns_hold_no_more_than_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model's Hessians together are larger than the model."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(24)))
    layers, _ = weight_rounding.layers_of(model, None, (), convolutions=False)
    assert [len(turn) for turn in hessians.turns_of(layers)] == [3] * 8
    monkeypatch.setattr(hessians, "_TURN_BYTES", 2 * 4 * 32**2)
    turns = hessians.turns_of(layers)
    assert [len(turn) for turn in turns] == [2] * 12
    assert [layer.name for turn in turns for layer in turn] == [str(place) for place in range(24)]
    monkeypatch.setattr(hessians, "_TURN_BYTES", 1)
    assert [len(turn) for turn in hessians.turns_of(layers)] == [1] * 24


def test_report_prints() -> None:
    """It is read on a terminal."""
    text = str(round_weights(linear(128, 8), [correlated(64, 128)]))
    assert "INT4, blocks of 128, gptq" in text and "8 x 128" in text and "1 calls" in text
    assert "of plain rounding" not in str(round_weights(linear(128, 8), bits=8, method="round"))


@pytest.mark.parametrize("module", [weight_rounding, hessians])
def test_examples(module: Any) -> None:
    """Examples are copied."""
    assert doctest.testmod(module).failed == 0
