"""Every option against what nobody should hand it: an error that names it, and nothing left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import singlecard
from singlecard.errors import OptionError
from singlecard.options import Options


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


#: What no option takes.
NEVER: dict[str, Any] = {
    "a number of no kind": object(),
    "a complex number": 1j,
    "nan": float("nan"),
    "half": 0.5,
    "bytes": b"sm86",
    "a function": len,
    "what cannot be shown": Unshowable(),
    "a module": torch.nn.Linear(2, 2),
    "several numbers": np.arange(3),
    "a tensor": torch.ones(2),
    "a generator": (name for name in ("a", "b")),
    "a class": dict,
}

TEXTS = ("targets", "remote_cache", "exclude_ops", "exclude_modules", "keep_fp32")
WORDS = ("precision", "execution", "fallback", "runtime", "build", "specialization")
FLAGS = ("strict", "demote_float64", "sparse_weights", "offload_weights", "cuda_graphs")
NUMBERS = ("min_block_size", "workspace_bytes", "cache_limit", "memory_budget")
PATHS = ("cache_dir", "signing_key", "calibration")


#: What one kind of options does not take, beside it.
SOMETIMES: list[tuple[tuple[str, ...], Any]] = [
    ((*TEXTS, *WORDS, *PATHS), ""),
    ((*TEXTS, *WORDS, *PATHS), "  "),
    ((*TEXTS, *WORDS, *PATHS, *FLAGS), 3),
    ((*TEXTS, *WORDS, *PATHS, *NUMBERS), True),
    ((*WORDS, *FLAGS, *NUMBERS, *PATHS, "remote_cache"), ["fp16"]),
    ((*TEXTS, *WORDS, *FLAGS, *NUMBERS, *PATHS), {"fp16": 1}),
    ((*PATHS, "remote_cache"), "a\0b"),
    ((*WORDS, *FLAGS, *NUMBERS, "targets", "remote_cache", "profiles"), Path("x")),
    ((*FLAGS,), 1),
    ((*FLAGS,), "yes"),
    ((*FLAGS,), np.True_),
    ((*NUMBERS, *WORDS), -1),
    ((*NUMBERS,), 2**63),
    ((*NUMBERS,), "many"),
    (("cache_limit", "memory_budget"), "9" * 400),
    ((*TEXTS[2:], "targets"), ["a", 3]),
    ((*TEXTS[2:], "targets"), ["a", ""]),
    (("cache_dir",), "~nobody_of_this_name/engines"),
    (("targets",), "sm86,portable"),
    (("exclude_ops",), "aten.sofmax"),
    (("exclude_ops",), "aten.__class__.x"),
    (("profiles",), {"x": {0: (2, 1)}}),
    (("profiles",), {"x": {0: (1, None)}}),
    (("profiles",), {3.5: {0: (1, 2)}}),
]

FIELDS = [field.name for field in dataclasses.fields(Options)]
CASES = [(name, value) for name in FIELDS for value in NEVER.values()] + [
    (name, value) for names, value in SOMETIMES for name in names
]


def test_each_option_is_in_the_table() -> None:
    """A new option without a check would take whatever it is given."""
    assert {*TEXTS, *WORDS, *FLAGS, *NUMBERS, *PATHS, "profiles"} == set(FIELDS)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_wrong_value_is_told_with_its_option(name: str, value: Any) -> None:
    """Unchecked, it ends deep inside of a build in an error of Python's, or in another model."""
    with pytest.raises(OptionError) as refused:
        Options.parse({name: value})
    assert name in str(refused.value)
    assert len(str(refused.value)) < 600
    with pytest.raises(OptionError):
        Options(**{name: value})


def test_integers_of_numpy_are_integers() -> None:
    """They come from a table of measurements."""
    options = Options.parse({"min_block_size": np.int64(3), "memory_budget": np.int32(0)})
    assert (options.min_block_size, options.memory_budget) == (3, 0)


@pytest.mark.parametrize("given", [3, "fp16", ["precision"], [("precision", "fp16")], Unshowable()])
def test_options_are_a_dict(given: Any) -> None:
    """``options="fp16"`` is what a hurried hand writes."""
    with pytest.raises(OptionError, match="it takes a dict from names to values"):
        Options.parse(given)


def test_nothing_is_left_of_a_call_with_a_wrong_option(tmp_path: Path) -> None:
    """A folder that is made for nothing is taken for a cache later."""
    folder = tmp_path / "cache"
    model, args = torch.nn.Linear(8, 4).eval(), (torch.ones(2, 8),)
    doors = {
        "verify": singlecard.verify,
        "explain": singlecard.explain,
        "export": lambda *given, options: singlecard.export(
            *given, path=tmp_path / "a.singlecard", options=options
        ),
        "plan": lambda *given, options: singlecard.plan_memory(
            *given, card="8GiB", options=options
        ),
        "calibrate": lambda model, args, options: singlecard.calibrate(
            model, [args], options=options
        ),
    }
    for wrong in ({"min_block_size": 0}, {"targts": "sm86"}, {"build": "later"}):
        for door in doors.values():
            with pytest.raises(OptionError, match=next(iter(wrong))):
                door(model, args, options={"cache_dir": folder, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_names_is_one_list_in_every_process() -> None:
    """Its order would decide whether the second start is warm."""
    assert Options.parse({"exclude_modules": {"b", "a", "c"}}).exclude_modules == ("a", "b", "c")
