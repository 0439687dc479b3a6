"""Tensors as raw bytes beside a description in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from singlecard.artifact.archive import Archive, Writer
from singlecard.capture.plain import from_plain, to_plain
from singlecard.errors import ArtifactError

_FOLDER = "tensors/"


class Adder:
    """Adds tensors to an artifact, each once."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._added: dict[int, tuple[torch.Tensor, dict[str, Any]]] = {}

    def __call__(self, value: torch.Tensor) -> dict[str, Any]:
        """Add a tensor; return where it is and what it is.

        Raises:
            ArtifactError: it is no plain tensor.
        """
        if id(value) not in self._added:
            self._added[id(value)] = (value, add_tensor(self._writer, value))
        return dict(self._added[id(value)][1])


def add_tensor(writer: Writer, value: torch.Tensor) -> dict[str, Any]:
    """Add a tensor to an artifact; return where it is and what it is."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise ArtifactError(
            f"the model holds a {type(value).__name__} that is neither a weight of an engine nor a "
            "plain tensor: artifacts hold plain tensors only"
        )
    if value.layout is not torch.strided or value.is_quantized:
        raise ArtifactError(
            f"the model holds a tensor of layout {value.layout}: keep weights in plain tensors"
        )
    plain = value.detach().resolve_conj().resolve_neg().contiguous().cpu()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    number = sum(name.startswith(_FOLDER) for name in writer.members)
    return {
        "member": writer.add(f"{_FOLDER}{number}.bin", content),
        "dtype": to_plain(value.dtype),
        "shape": list(value.shape),
    }


def read_tensor(archive: Archive, held: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """Return a tensor of an artifact, on a device, in memory of its own."""
    dtype, shape = from_plain(held["dtype"]), [int(size) for size in held["shape"]]
    content = bytearray(archive.read(held["member"]))
    if len(content) != torch.Size(shape).numel() * dtype.itemsize:
        raise archive.damaged(f"{held['member']} is no {dtype} of shape {shape}")
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(shape).to(device)
