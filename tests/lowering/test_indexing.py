"""Elements read by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from singlecard.errors import CaptureError
from tests.lowering.check import check, refuse

_I = torch.tensor([[0, -1], [2, 1]])
_J = torch.tensor([1, -2])

_CALLS: dict[str, Callable[..., Any]] = {
    "one index": lambda x, i, j: (x[i], x[:, j], x[..., j]),
    "neighbours": lambda x, i, j: (x[i, j], x[:, i, j], x[i, j, i]),
    "neighbours of different shapes": lambda x, i, j: x[i.unsqueeze(-1), j],
    "apart": lambda x, i, j: (x[i, :, j], x[j, :, :, i], x[:, j, :, j]),
    "with numbers and new axes": lambda x, i, j: (x[0, j], x[j, None, 1:], x[:, j, ::2]),
    "index_select": lambda x, i, j: x.index_select(-1, j % 3),
    "take": lambda x, i, j: x.take(i),
    "take_along_dim": lambda x, i, j: x.take_along_dim((i % 2).view(4, 1, 1, 1)[:3], 1),
}


@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
@pytest.mark.parametrize("name", _CALLS)
def test_reads(name: str, kind: torch.dtype) -> None:
    """Position tables and routing read by index, from the end too, which TensorRT does not do."""
    x = torch.randint(0, 2 if kind == torch.bool else 99, (3, 4, 5, 3)).to(kind)
    check(_CALLS[name], x, _I, _J, build=kind == torch.float32)


def test_gathers_from_a_larger_tensor() -> None:
    """PyTorch lets an index be smaller than the tensor: the rest is not looked at."""
    x, index = torch.rand(4, 5, 6), torch.randint(0, 5, (2, 7, 3))
    check(lambda x, i: x.gather(1, i), x, index, build=True)
    check(lambda x, i: x.gather(0, i), torch.tensor(3.0), torch.tensor(0))


def test_scatters_by_mask() -> None:
    """Multimodal models put image features at the places of image tokens like this."""
    x, source = torch.rand(2, 3, 4), torch.arange(30.0)
    mask = torch.rand(2, 3, 1) > 0.5
    check(lambda x, m, s: x.masked_scatter(m, s), x, mask, source, build=True)


def test_a_mask_as_index_stays_in_pytorch() -> None:
    """The number of elements depends on data: eager must answer, and the reason say why."""

    def pick(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.index.Tensor(x, [mask.to(torch.bool)])

    with pytest.raises(CaptureError, match=r"aten\.nonzero"):
        refuse(pick, torch.rand(4), torch.tensor([1, 0, 1, 1]))
