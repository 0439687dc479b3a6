"""Options are checked once, at the door, and errors name the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from singlecard.errors import CalibrationError, OptionError, TargetError
from singlecard.options import Options
from singlecard.precision.table import CalibrationTable


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("precison", "precision"),
        ("target", "targets"),
        ("cachedir", "cache_dir"),
        ("execute", "execution"),
        ("min_blocksize", "min_block_size"),
        ("Strict", "strict"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    """A misspelt option that is ignored runs another model than the user asked for."""
    with pytest.raises(OptionError, match=f"unknown option '{key}'.*'{nearest}'"):
        Options.parse({key: 1})


def test_key_like_no_other_lists_all() -> None:
    """Where no key is near, the message lists them."""
    names = "precision, calibration, .*targets, execution, fallback, .*strict"
    with pytest.raises(OptionError, match=names):
        Options.parse({"zzzz": 1})


BAD: list[dict[str, Any]] = [
    {"precision": "fp17"},
    {"precision": 16},
    {"precision": ["fp16"]},
    {"precision": "int4"},
    {"keep_fp32": 3},
    {"sparse_weights": "yes"},
    {"calibration": 7},
    {"execution": "gpu"},
    {"strict": "yes"},
    {"build": "later"},
    {"fallback": "cudagraphs"},
    {"cache_limit": -1},
    {"cache_limit": "20 lots"},
    {"remote_cache": 3},
    {"signing_key": b"secret"},
    {"strict": 1},
    {"demote_float64": 1},
    {"min_block_size": 0},
    {"min_block_size": 1.5},
    {"min_block_size": True},
    {"workspace_bytes": -1},
    {"workspace_bytes": "1GB"},
    {"cache_dir": 7},
    {"targets": 89},
    {"targets": {"sm89": 1}},
    {"offload_weights": "yes"},
    {"cuda_graphs": 1},
    {"specialization": "behind"},
]


@pytest.mark.parametrize("given", BAD, ids=str)
def test_bad_value_names_option_and_value(given: dict[str, Any]) -> None:
    """The message leads to the option; a TypeError from deep inside would not."""
    ((key, value),) = given.items()
    with pytest.raises(OptionError) as caught:
        Options.parse(given)
    assert key in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [{"memory_budget": "1GiB"}, {"cuda_graphs": True}, {"offload_weights": True},
     {"specialization": "none"}],
    ids=str,
)  # fmt: skip
def test_what_another_runtime_does_not_do_is_refused(given: dict[str, Any]) -> None:
    """A budget that nobody keeps is found out when the card runs full."""
    (key,) = given
    with pytest.raises(OptionError, match=f"{key}=.*runtime='torch_tensorrt'"):
        Options.parse({"runtime": "torch_tensorrt", **given})
    Options.parse(given)


def test_near_value_is_suggested() -> None:
    """A typo in a value is as easy to name as one in a key."""
    with pytest.raises(OptionError, match="did you mean 'fp16'"):
        Options.parse({"precision": "pf16"})
    with pytest.raises(TargetError, match="did you mean 'sm89'"):
        Options.parse({"targets": "sm98"})


def test_none_means_default() -> None:
    """A caller who passes a setting through must not have to leave out what is not set."""
    names = [field.name for field in dataclasses.fields(Options)]
    assert Options.parse(dict.fromkeys(names)) == Options()
    assert Options.parse(None) == Options() == Options.parse({})


def test_good_values() -> None:
    """Values arrive in one form."""
    options = Options.parse(
        {"targets": "SM_89, sm86,sm89", "cache_dir": "~/engines", "precision": "bf16"}
    )
    assert options.targets == ("sm86", "sm89")
    assert options.cache_dir == Path("~/engines").expanduser()
    assert Options.parse({"targets": "portable"}).targets == ()
    assert Options.parse(options) is options


TABLE = CalibrationTable("min-max", 2, (), {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "int8"}, "precision='int8' needs scales: .*singlecard.calibrate"),
        ({"precision": "fp8"}, "precision='fp8' needs scales"),
        ({"precision": "auto"}, "precision='auto' needs scales"),
        ({"precision": "auto", "calibration": TABLE}, "assigns nothing.*search_precision"),
        ({"precision": "bf16", "calibration": TABLE}, "precision='bf16' uses none"),
        ({"calibration": TABLE}, "precision='fp32' uses none"),
    ],
    ids=str,
)
def test_calibration_and_precision_belong_together(given: dict[str, Any], said: str) -> None:
    """INT8 without scales, or scales that nothing uses, is not what the caller meant."""
    with pytest.raises(OptionError, match=said):
        Options.parse(given)


def test_a_table_is_given_as_it_is_or_as_a_file(tmp_path: Path) -> None:
    """Production reads a file, a notebook has the table at hand."""
    TABLE.save(tmp_path / "table.json")
    for given in (TABLE, tmp_path / "table.json", str(tmp_path / "table.json")):
        assert Options.parse({"precision": "int8", "calibration": given}).calibration == TABLE
    for precision in ("int8-weight", "int4-weight"):
        assert Options.parse({"precision": precision}).calibration is None
    with pytest.raises(CalibrationError, match="missing.json cannot be read"):
        Options.parse({"precision": "int8", "calibration": "missing.json"})


def test_names_that_stay_in_fp32() -> None:
    """One name, several with commas, or a list."""
    for given in ("a:add, b", ["a:add", "b"], ("a:add", "b")):
        assert Options.parse({"keep_fp32": given}).keep_fp32 == ("a:add", "b")


def test_options_cannot_change() -> None:
    """Options that change after the check were never checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().strict = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ({"x": {0: (4, 2, 8)}}, "4, 2, 8, it takes min <= opt <= max"),
        ({"x": {0: (1, 9, 8)}}, "min <= opt <= max"),
        ({"x": {0: (0, 1, 2)}}, "integers >= 1"),
        ({"x": {0: (1, 2, 3, 4)}}, r"\(min, max\) or \(min, opt, max\)"),
        ({"x": {0: (None, 2)}}, r"\(min, opt, max\)"),
        ({"x": {-1: (1, 2, 3)}}, "axis -1 of x"),
        ({"x": {"batch": (1, 2, 3)}}, "axis 'batch' of x"),
        ({"x": (1, 2, 3)}, "it takes"),
        ([1, 2], "it takes"),
    ],
)
def test_bad_profile_names_input_and_axis(profiles: Any, words: str) -> None:
    """A range that is upside down would fail deep inside of the build, with no name."""
    with pytest.raises(OptionError, match=words):
        Options.parse({"profiles": profiles})
