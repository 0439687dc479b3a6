"""Whether a plan can run on this machine, from its first bytes and before it is loaded."""

from __future__ import annotations

import logging
from typing import Any

from singlecard.network.flavour import flavour_name, flavour_version, trt

log = logging.getLogger("singlecard.runtime")

#: What stands in the way, by the bits of TensorRT's ``EngineInvalidityDiagnostics``, and the cure.
_PROBLEMS = {
    "VERSION_MISMATCH": (
        "another version of TensorRT built it than {installed}",
        "build it again with the one that is installed here",
    ),
    "UNSUPPORTED_CC": (
        "it was built for other cards than this one",
        "build it for this one too, with the option targets",
    ),
    "OLD_CUDA_DRIVER": ("the NVIDIA driver is too old for it", "update the driver"),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old for it", "update CUDA, or PyTorch with it"),
    "INSUFFICIENT_GPU_MEMORY": (
        "the card has too little memory for it",
        "free memory, choose a lower precision, or give a memory_budget",
    ),
    "MALFORMED_ENGINE": (
        "its file is damaged, or no engine",
        "remove it, and it is built again",
    ),
    "CUDA_ERROR": ("CUDA does not work", "look at what nvidia-smi says of the card and its driver"),
}


def plan_refusal(runtime: Any, plan: memoryview) -> str | None:
    """Return why a plan cannot run here, with what to do about it; None if it may.

    Full TensorRT has no such check, and says what is wrong when it loads.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    library: Any = trt
    with plan[: runtime.engine_header_size] as head:
        validity, bits = runtime.get_engine_validity(head)
    if validity == library.EngineValidity.SUBOPTIMAL:
        log.info("an engine was built for other cards than this one: it may be slower than it can")
    if validity != library.EngineValidity.INVALID:
        return None
    met = [
        text
        for name, text in _PROBLEMS.items()
        if bits & int(getattr(library.EngineInvalidityDiagnostics, name))
    ]
    if not met:
        return None  # nothing is known to be wrong: loading tells
    installed = f"{flavour_name()} {flavour_version()}"
    problems = " and ".join(problem.format(installed=installed) for problem, _ in met)
    return f"{problems}: {'; '.join(cure for _, cure in met)}"
