"""Errors that singlecard raises. Each says what happened, to what, and what to do next.

SinglecardError
├── OptionError        an option, a target or an argument is not valid
│   └── TargetError    a card is unknown, or lacks a type the network needs
├── CalibrationError   a calibration table is damaged, of another model, or cannot be made
├── FlavourError       TensorRT is missing or does not load
├── CaptureError       a model could not be captured as a graph
├── RewriteError       a pass changed what a graph answers
├── LoweringError      a graph could not become a TensorRT network
├── BuildError         TensorRT refused to build a network
├── CacheError         the engine cache cannot be read or written
├── ArtifactError      an artifact is damaged, of another release, or cannot be written
├── EvaluationError    the reference evaluator cannot run a network
├── ModelError         MODEL on the command line does not lead to a model
└── RuntimeFailure     an engine could not be loaded or run
"""

from __future__ import annotations


class SinglecardError(Exception):
    """Base of every error that singlecard raises on purpose."""


class OptionError(SinglecardError, ValueError):
    """An option, a target or an argument is not valid."""


class TargetError(OptionError):
    """A card is unknown, or lacks a type that the network needs."""


class CalibrationError(SinglecardError, ValueError):
    """A calibration table is damaged, belongs to another model, or cannot be made from the data."""


class FlavourError(SinglecardError, ImportError):
    """TensorRT is missing or does not load."""


class CaptureError(SinglecardError):
    """A model could not be captured as a graph."""


class RewriteError(SinglecardError):
    """A pass changed what a graph answers: a fault of singlecard's own, found by a check.

    Attributes:
        in_pass: the pass.
        rule: the first rule that changed an answer; None where the pass has no rules, or where
            they do it together only.
        op: the op that it fired at.
        error: which result changed, and how.
    """

    def __init__(self, in_pass: str, rule: str | None, op: str | None, error: str) -> None:
        what = f"{rule} at {op}, in {in_pass}," if rule else in_pass
        super().__init__(
            f"{what} changed what the graph answers: {error}. "
            "Please report this with the model; unset SINGLECARD_CHECK to compile without checks"
        )
        self.in_pass, self.rule, self.op, self.error = in_pass, rule, op, error


class LoweringError(SinglecardError):
    """A graph could not become a TensorRT network."""


class BuildError(SinglecardError):
    """TensorRT refused to build a network."""


class CacheError(SinglecardError, OSError):
    """The engine cache cannot be read or written."""


class ArtifactError(SinglecardError, ValueError):
    """An artifact is damaged, of another release, wrongly signed, or cannot be written."""


class EvaluationError(SinglecardError):
    """The reference evaluator met a layer without a defined meaning, or feeds that do not fit."""


class ModelError(SinglecardError):
    """MODEL on the command line does not lead to a model."""


class RuntimeFailure(SinglecardError, RuntimeError):
    """An engine could not be loaded or run."""
