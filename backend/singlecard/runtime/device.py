"""Which GPUs engines run on."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from singlecard.errors import FlavourError
from singlecard.network.flavour import flavour_name
from singlecard.targets import TARGETS


def target_of(device: torch.device) -> str:
    """Return the target name of a CUDA device, such as ``sm89``."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def card_refusal(tensors: Iterable[torch.Tensor]) -> str | None:
    """Return why engines cannot run on the device that holds these tensors, or None.

    Cards of the installed flavour: TensorRT for RTX serves those of `singlecard.targets.TARGETS`,
    and no data-centre card of Hopper or later; full TensorRT says itself what it does not load.
    """
    devices = {tensor.device for tensor in tensors}
    if not torch.cuda.is_available():
        return f"there is no CUDA GPU on this machine{_missing()}"
    if not any(device.type == "cuda" for device in devices):
        return "the model and its inputs are not on a CUDA device"
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        return f"the model and its inputs lie on several devices ({names})"
    device = devices.pop()
    target = target_of(device)
    if target not in TARGETS and _is_rtx():
        return (
            f"{torch.cuda.get_device_name(device)} ({device}) has compute capability "
            f"{_capability(target)}, which TensorRT for RTX does not serve (it serves "
            f"{', '.join(map(_capability, TARGETS))})"
        )
    return None


def _missing() -> str:
    """Say more of a machine where PyTorch finds no GPU, if more is known."""
    if torch.version.cuda is None:
        return " that this PyTorch could use (it was built without CUDA)"
    if torch.cuda.device_count():
        return (
            f" that PyTorch {torch.__version__} could use (its driver may be too old for CUDA "
            f"{torch.version.cuda})"
        )
    return ""


def _capability(target: str) -> str:
    digits = target.removeprefix("sm")
    return f"{digits[:-1]}.{digits[-1]}"


def _is_rtx() -> bool:
    try:
        return flavour_name() == "tensorrt_rtx"
    except FlavourError:
        return True  # what would be installed first
