"""Segments that stay in PyTorch, as programs in plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from singlecard.artifact.programs import program_to_plain
from singlecard.capture.plain import NotPlain
from singlecard.capture.program import Program
from singlecard.errors import ArtifactError
from singlecard.partition import Segment
from singlecard.runtime.runners import module_of


def segment_to_plain(
    program: Program,
    segment: Segment,
    add: Callable[[torch.Tensor], Any],
    what: str,
) -> dict[str, Any]:
    """Return a segment as JSON has it.

    Args:
        program: what it is a part of.
        segment: its ops, which take and give flat values.
        add: see `program_to_plain`.
        what: it is, for messages.

    Raises:
        ArtifactError: it calls what no file may name.
    """
    module = module_of(program, segment)
    try:
        return program_to_plain(module, add)
    except NotPlain as error:
        raise ArtifactError(
            f"{what} cannot be written without code in it ({error}): keep weights in plain tensors "
            "and use ops of PyTorch that compute and do nothing else"
        ) from error
    finally:
        module.graph.owning_module = None  # they hold one another
