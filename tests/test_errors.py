"""The tree of errors: one base, and what Python programmers catch already."""

from __future__ import annotations

import inspect

import pytest

from singlecard import errors

CLASSES = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, errors.SinglecardError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_is_public_and_documented(kind: type[Exception]) -> None:
    """A user must be able to import and to look up whatever is raised."""
    import singlecard

    assert getattr(singlecard, kind.__name__) is kind
    assert kind.__name__ in singlecard.__all__
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.OptionError, ValueError),
        (errors.TargetError, errors.OptionError),
        (errors.ArtifactError, ValueError),
        (errors.CalibrationError, ValueError),
        (errors.FlavourError, ImportError),
        (errors.CacheError, OSError),
        (errors.RuntimeFailure, RuntimeError),
    ],
)
def test_is_what_python_programmers_catch(kind: type[Exception], base: type[Exception]) -> None:
    """Code that catches OSError around file work catches ours too."""
    assert issubclass(kind, base)
    assert str(kind("what happened")) == "what happened"
