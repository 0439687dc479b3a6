"""Whole models: architectures of ``transformers``, small, with seeded random weights.

Each declaration gives ``(module, args, kwargs)`` in eval mode. Sizes are small and the structure is
that of the real ones: at least two layers, grouped queries where the family has them, windows that
are shorter than the sequence. What is left to PyTorch stands beside the name, as an expectation
that may only improve; `tests/models/test_architectures.py` checks each, and
`benchmarks/architectures.py` measures them.
"""

from __future__ import annotations

from tests.models import (  # noqa: F401  # each puts its models on the list
    audio,
    cnns,
    decoders,
    detection,
    encoder_decoders,
    multimodal,
    segmentation,
    state_spaces,
    text_encoders,
    vision_transformers,
)
from tests.models.listing import LISTED, Architecture

__all__ = ["ARCHITECTURES", "FAMILIES", "Architecture"]

FAMILIES = (
    "cnn",
    "vision transformer",
    "segmentation",
    "detection",
    "text encoder",
    "decoder",
    "decode step",
    "state-space",
    "encoder-decoder",
    "multimodal",
    "audio",
)

ARCHITECTURES: dict[str, Architecture] = dict(
    sorted(LISTED.items(), key=lambda item: FAMILIES.index(item[1].family))
)
