"""How much memory there is, how much a process holds, and how much a build will need."""

from __future__ import annotations

from pathlib import Path

from singlecard.free_memory import free_memory

#: What a job holds before its model is loaded: PyTorch imported (0.33 GB), and some to spare.
LOADING_BYTES = 600_000_000

#: What a build adds beside the weights: PyTorch's compiler and TensorRT themselves.
BUILDING_BYTES = 700_000_000

#: What a build adds for each byte of the loaded model's weights. Measured on linear layers, ResNet,
#: BERT, GPT-2 and Llama-style decoders of 0.1 to 2 GB, from FP32 to INT4: at most 1.4.
BUILDING_FACTOR = 2.0

#: Share of the free memory that is used where the user names no budget.
SHARE = 0.8

#: A peak that was measured before is taken as needed again, with this much to spare; more in
#: another precision (BERT in INT8 held 1.19 times what it held in FP16).
_SAME, _ALIKE = 1.1, 1.3


def default_budget() -> int:
    """Return the bytes that builds may hold together where the user says nothing."""
    return round(SHARE * free_memory())


def need_after_loading(held: int, peak: int, weights: int) -> int:
    """Return what a job will hold at most, once its model is loaded.

    Args:
        held: bytes that the process holds now.
        peak: the most that it held so far.
        weights: bytes of the model's parameters and buffers.
    """
    return max(peak, round(held + BUILDING_BYTES + BUILDING_FACTOR * weights))


def need_again(peak: int, same: bool) -> int:
    """Return what to set aside for a job, from its own peak or from that of one like it."""
    return round(peak * (_SAME if same else _ALIKE))


def held_memory(process: int | str = "self") -> tuple[int, int]:
    """Return the bytes that a process holds, and the most that it held; 0 where it is gone."""
    fields = {"VmRSS:": 0, "VmHWM:": 0}
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            words = line.split()
            if words and words[0] in fields:
                fields[words[0]] = int(words[1]) * 1024
    except (OSError, ProcessLookupError):
        pass
    return fields["VmRSS:"], fields["VmHWM:"]
