"""Which GPUs engines run on."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from singlecard.targets import TARGETS


def target_of(device: torch.device) -> str:
    """Return the target name of a CUDA device, such as ``sm89``."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def card_refusal(tensors: Iterable[torch.Tensor]) -> str | None:
    """Return why engines cannot run on the device that holds these tensors, or None."""
    devices = {tensor.device for tensor in tensors}
    if not torch.cuda.is_available():
        return "there is no CUDA GPU on this machine"
    if not any(device.type == "cuda" for device in devices):
        return "the model and its inputs are not on a CUDA device"
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        return f"the model and its inputs lie on several devices ({names})"
    target = target_of(devices.pop())
    if target not in TARGETS:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {target[2:]}, which TensorRT "
            f"for RTX does not serve (it serves {', '.join(TARGETS)})"
        )
    return None
