"""A Llama-style decoder on disk, written piece by piece: it is never whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

#: Bytes of one file. Linux maps no file privately that is larger than the machine's memory.
SHARD_BYTES = 1_000_000_000


def decoder_config(layers: int, dtype: torch.dtype) -> LlamaConfig:
    """Return a decoder of 60.8 million weights a layer, and 33.6 million beside them."""
    return LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=8192,
        use_cache=False,
        attn_implementation="sdpa",
        dtype=dtype,
    )


def write_checkpoint(folder: Path, layers: int, dtype: torch.dtype) -> None:
    """Write a decoder with random weights as ``from_pretrained`` reads it."""
    config = decoder_config(layers, dtype)
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()
        }
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    places: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes, dtype)):
        file = f"model-{number:05}.safetensors"
        # Small values: sums of thousands of them stay in FP16's range.
        shard = {name: torch.empty(shapes[name]).normal_(std=0.02).to(dtype) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(shapes: dict[str, torch.Size], dtype: torch.dtype) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        names.append(name)
        size += shape.numel() * dtype.itemsize
        if size >= SHARD_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names
