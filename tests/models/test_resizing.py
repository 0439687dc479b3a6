"""Arguments at other sizes: what a cache holds is made anew, and what does not fit is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from singlecard.report.arguments import copied
from tests.models.architectures import ARCHITECTURES
from tests.models.resizing import resized


def shapes(values: Any) -> list[list[int]]:
    leaves = pytree.tree_leaves(values)
    return [list(item.shape) for item in leaves if isinstance(item, torch.Tensor)]


@pytest.mark.parametrize("name", ["llama_decode", "opt_decode", "t5_decode", "mamba_decode"])
@torch.no_grad()
def test_cache_belongs_to_its_batch(name: str) -> None:
    """Rows of one cache under the words of another batch would measure nothing of use."""
    case = ARCHITECTURES[name].make()
    for step in (1, 2):
        module, args, kwargs = resized(case, step)
        assert module is case[0]
        cache = kwargs.get("past_key_values", kwargs.get("cache_params"))
        held = [item for item in pytree.tree_leaves(cache) if isinstance(item, torch.Tensor)]
        assert {len(item) for item in held if item.ndim} == {2 + step}
        assert all(bool(item.any()) for item in held), "nothing was read before"
        answers = module(*copied(args), **copied(kwargs))
        again = module(*copied(args), **copied(kwargs))
        assert len(answers.logits) == 2 + step
        assert torch.equal(answers.logits, again.logits), "a call writes into its own copy"


@torch.no_grad()
def test_words_and_room_of_a_cache_vary() -> None:
    """One word at a time is half of a decoder's work: prompts come in pieces of any length."""
    case = ARCHITECTURES["llama_decode"].make()
    assert resized(case, 0) is case
    words = [resized(case, step)[2]["input_ids"].shape for step in range(3)]
    assert [list(item) for item in words] == [[2, 1], [3, 3], [4, 5]]
    rooms = [shapes(resized(case, step)[2]["past_key_values"]) for step in range(3)]
    assert [next(item[2] for item in room if len(item) == 4) for room in rooms] == [16, 24, 32]
    batch = resized(case, 2, sizes=False)[2]
    assert list(batch["input_ids"].shape) == [4, 1]
    assert [4, 2, 16, 8] in shapes(batch["past_key_values"])
