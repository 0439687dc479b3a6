"""Models that artifacts are made of. Weights are the same in every process."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers as T
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions with batch norm, a head, two answers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm(self.conv(x)))
        return self.head(y.mean((2, 3))), F.max_pool2d(y, 2)


class Attending(nn.Module):
    """Attention as PyTorch's own function has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Counting(nn.Module):
    """Writes to buffers that it reads; one of them is in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.total: Tensor
        self.register_buffer("total", torch.full((4,), 2.0))
        self.part = nn.Module()
        self.part.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.total += x.sum(0)
        self.part.calls += 1  # type: ignore[operator]
        return self.linear(x) + self.total, self.part.calls * 2  # type: ignore[operator]


class Cached(nn.Module):
    """A decoder's step: keys and values of all words so far stay in buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keys: Tensor
        self.values: Tensor
        self.query, self.both = nn.Linear(16, 16), nn.Linear(16, 32)
        self.register_buffer("keys", torch.zeros(1, 2, 12, 8))
        self.register_buffer("values", torch.zeros(1, 2, 12, 8))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (2, 8)).transpose(1, 2)
        k, v = self.both(x).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
        self.keys.index_copy_(2, place, k)
        self.values.index_copy_(2, place, v)
        mask = (torch.arange(12) <= place[-1])[None]
        attended = F.scaled_dot_product_attention(q, self.keys, self.values, mask)
        return attended.transpose(1, 2).flatten(2)


class Bessel(nn.Module):
    """An op that TensorRT has not between two parts that it has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4)
        self.scale = torch.linspace(0.5, 1, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.special.bessel_j0(self.first(x).relu()) * self.scale
        y = torch.special.bessel_j1(y.reshape(-1)).reshape(-1, 6) + x.shape[0]
        return self.second(y), y


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = T.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    ids = torch.arange(20).reshape(2, 10) % 50
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    return T.BertModel(config).eval(), {"input_ids": ids, "attention_mask": mask}


LLAMA = T.LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
)


def llama() -> Any:
    torch.manual_seed(0)
    return T.LlamaForCausalLM(LLAMA).eval()
