"""Calibration data comes in many forms; each must reach the model as the call it stands for."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from singlecard.errors import CalibrationError
from singlecard_calib.feeding import calls, check_evaluation, run

ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("item", "args", "kwargs"),
    [
        (ONE, (ONE,), {}),
        ((ONE, 3), (ONE, 3), {}),
        ([ONE, None], (ONE, None), {}),
        ({"x": ONE}, (), {"x": ONE}),
        (UserDict(x=ONE), (), {"x": ONE}),  # what tokenizers return
        (((ONE,), {"y": 2}), (ONE,), {"y": 2}),
        (((), {"y": 2}), (), {"y": 2}),
        ((ONE, {"y": 2}), (ONE, {"y": 2}), {}),  # a dict that is a positional argument
        ((ONE, ONE), (ONE, ONE), {}),
    ],
)
def test_every_form_of_a_call(item: Any, args: Any, kwargs: Any) -> None:
    """A form taken for another feeds the model with something else than the user's data."""
    ((got_args, got_kwargs),) = calls([item])
    assert len(got_args) == len(args)
    assert all(got is want or got == want for got, want in zip(got_args, args, strict=True))
    assert got_kwargs.keys() == kwargs.keys()
    assert all(got_kwargs[key] is kwargs[key] for key in kwargs)


def test_loaders_and_generators() -> None:
    """Both are data as they are, and a loader makes lists of the tuples it collates."""
    pairs = [((torch.ones(3),), {"y": torch.zeros(1)})] * 4
    for args, kwargs in calls(DataLoader(pairs, batch_size=2)):
        assert [tuple(value.shape) for value in args] == [(2, 3)]
        assert tuple(kwargs["y"].shape) == (2, 1)
    assert len(list(calls(ONE for _ in range(3)))) == 3


def test_data_is_read_as_it_is_asked_for() -> None:
    """A stream that never ends must not be read ahead."""

    def endless() -> Any:
        while True:
            yield ONE

    stream = calls(endless())
    assert next(stream)[0][0] is next(stream)[0][0] is ONE


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ONE, "got Tensor: put it into a list"),
        ({"x": ONE}, "got dict: put it into a list"),
        ("images", "got str"),
        (None, "got NoneType"),
        (7, "got int"),
        ([], "no calibration data"),
        (iter(()), "a generator gives its items once only"),
        ([ONE, 3], "item 1 of the calibration data is int"),
        (["text"], "item 0 of the calibration data is str"),
    ],
)
def test_what_is_no_data(data: Any, said: str) -> None:
    """A tensor would be fed row by row, and a dict key by key: wrong scales, and no error."""
    with pytest.raises(CalibrationError, match=said):
        list(calls(data))


def test_training_mode() -> None:
    """Dropout in one forgotten part makes statistics that no inference has."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with pytest.raises(ValueError, match=r"the model is in training mode.*model\.eval\(\)"):
        check_evaluation(model)
    model.eval()
    check_evaluation(model)
    model[1].train()
    with pytest.raises(ValueError, match="the model's 1 is in training mode"):
        check_evaluation(model)


def test_a_run_leaves_the_data_alone() -> None:
    """The second run of the same data must see what the first saw."""

    def adds(x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
        y += 1
        return x.add_(y)

    x, y = torch.zeros(2), torch.zeros(2)
    call = (x,), {"y": y}
    assert run(adds, call).tolist() == run(adds, call).tolist() == [1, 1]
    assert x.tolist() == y.tolist() == [0, 0]


def test_a_run_compiles_nothing() -> None:
    """Hooks on modules are not called from compiled code: all layers would seem to be unused."""
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    compiled = torch.compile(model, backend="eager")
    assert not run(compiled, ((ONE,), {})).requires_grad
    seen: list[int] = []
    hook = model[0].register_forward_pre_hook(lambda module, args: seen.append(1))
    run(compiled, ((ONE,), {}))
    hook.remove()
    assert seen == [1]
