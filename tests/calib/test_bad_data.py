"""Bad data and bad models: a clear error or a stated choice, never a silent bad scale."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard
from singlecard.errors import CalibrationError, OptionError
from singlecard.warning import SinglecardWarning, warn_once


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches(count: int = 4, rows: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 8, generator=generator) for _ in range(count)]


INPUT, HIDDEN = "0:linear/input", "2:linear/input"


@pytest.mark.parametrize("data", [[], iter(())])
def test_no_data(data: Any) -> None:
    """A table without scales would look like one."""
    with pytest.raises(CalibrationError, match="no calibration data"):
        singlecard.calibrate(small(), data)


def test_a_loop_that_calls_another_model() -> None:
    """Calling what torch.compile returned before goes past the module that is watched."""
    model = small()
    with singlecard.calibrating(model) as calibration:
        model.forward(batches()[0])
    with pytest.raises(CalibrationError, match="not called once. Call the module itself"):
        calibration.table()


def test_one_call_is_little() -> None:
    """One batch often misses the largest values: it works, and is told."""
    warn_once.cache_clear()
    with pytest.warns(SinglecardWarning, match="with one call knows little"):
        assert singlecard.calibrate(small(), batches(1)).samples == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", SinglecardWarning)
        singlecard.calibrate(small(), batches(2))


def test_data_of_another_shape() -> None:
    """The model's own words, and which call: not Dynamo's traceback."""
    data = [*batches(2), torch.ones(3, 9)]
    with pytest.raises(CalibrationError, match=r"RuntimeError for call 3 .*\(3x9 and 8x16\)"):
        singlecard.calibrate(small(), data)


def test_an_error_in_a_loop_is_the_models_own() -> None:
    """A loop that catches its model's ValueError must go on doing so."""

    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("too long")

    model = Raising().eval()
    with singlecard.calibrating(model), pytest.raises(ValueError, match="^too long$"):
        model(torch.ones(2))


@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_values_that_are_no_numbers(bad: float, word: str) -> None:
    """A histogram ignores them, or ends at infinity: either way a scale would be made of it."""
    data = batches()
    data[2][1, 1] = bad
    with pytest.raises(CalibrationError, match=rf"call 3 .*{INPUT}.*is {word}.*exclude_modules"):
        singlecard.calibrate(small(), data)


def test_the_way_out_of_bad_values() -> None:
    """What the message says to do must work."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.good(self.bad(x / 0).nan_to_num(0, 1, -1) + x)

    model = Half().eval()
    with pytest.raises(CalibrationError, match="bad:linear/input"):
        singlecard.calibrate(model, batches())
    table = singlecard.calibrate(model, batches(), options={"exclude_modules": ["bad"]})
    assert table.tensors.keys() == {"good:linear/input"}


def test_tensors_that_are_always_zero() -> None:
    """There is no scale for nothing; the op stays in FP16, and the report says why."""
    model = small()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)  # the ReLU lets nothing through
    table = singlecard.calibrate(model, batches())
    assert table.missing == (HIDDEN,)
    report = singlecard.verify(
        model, (batches()[0],), options={"precision": "int8", "calibration": table}
    )
    (decision,) = (d for d in report.placements[0].decisions if d.name == "2:linear")
    assert decision.taken == "fp16" and "no entry for 2:linear/input" in decision.reason


def test_tensors_that_are_constant() -> None:
    """One value only is a range too."""
    table = singlecard.calibrate(small(), [torch.full((2, 8), 0.5)] * 2, method="entropy")
    assert table.tensors[INPUT].largest == 0.5
    assert 0 < table.tensors[INPUT].threshold


def test_training_mode() -> None:
    """Dropout makes statistics that no inference has."""
    model = small()
    model[1].train()
    with pytest.raises(CalibrationError, match="the model's 1 is in training mode"):
        singlecard.calibrate(model, batches())
    with pytest.raises(CalibrationError, match="in training mode"):
        with singlecard.calibrating(model):
            pass


def test_nothing_to_quantize() -> None:
    """An empty table would be taken for a model that INT8 does not help."""
    with pytest.raises(CalibrationError, match="nothing in the model can be quantized"):
        singlecard.calibrate(nn.Sequential(nn.ReLU(), nn.Softmax(-1)).eval(), batches())


def test_calls_of_more_kinds_than_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives up compiling then, and runs on unwatched: calls would be missing."""

    class Choosing(nn.Linear):
        def forward(self, x: Tensor, power: int = 1) -> Tensor:
            return super().forward(x) * [1, 2, 3, 4, 5, 6][power]

    monkeypatch.setitem(sys.modules["singlecard_calib.calibrate"]._LIMITS, "recompile_limit", 2)
    data = [(batches()[0], power) for power in range(6)]
    with pytest.raises(CalibrationError, match="this call needs another"):
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
            singlecard.calibrate(Choosing(8, 4).eval(), data)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "max"}, "method='max' is not valid: it takes one of min-max"),
    ({"percentile": 0}, "percentile=0 is not valid"),
    ({"percentile": "99"}, "percentile='99' is not valid"),
    ({"smoothing": 1.0}, "smoothing=1.0 is not valid"),
    ({"smoothing": "on"}, "smoothing='on' is not valid"),
    ({"smoothing": True}, "smoothing=True is not valid"),
    ({"weights": "int2"}, "weights='int2' is not valid"),
    ({"bias_correction": 1}, "bias_correction=1 is not valid"),
    ({"options": {"precison": "fp16"}}, "unknown option 'precison'"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said for _, said in BAD])
def test_settings_that_are_not_valid(given: dict[str, Any], said: str) -> None:
    """Found before the model runs, by name and value."""
    with pytest.raises(OptionError, match=said):
        singlecard.calibrate(small(), batches(), **given)
