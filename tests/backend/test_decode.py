"""Decoders with a static cache: prompts and single words in TensorRT, the cache in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM, StaticCache

from singlecard.backend import compile_in
from singlecard.options import Options
from singlecard.session import Session

LAYERS = 3
CONFIG = LlamaConfig(
    hidden_size=256,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=512,
    vocab_size=300,
)


@pytest.fixture(autouse=True)
def no_memory_of_other_tests() -> None:
    torch._dynamo.reset()


def small_llama(kind: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval().to(kind)


def backend_of(session: Session) -> Callable[..., Any]:
    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(session, graph, examples)

    return backend


@torch.no_grad()
def written(model: Callable[..., Any], batch: int) -> tuple[torch.Tensor, StaticCache]:
    """Read a prompt in two parts and write three words; return all logits and the cache."""
    cache = StaticCache(config=CONFIG, max_cache_len=32)
    words = torch.arange(batch * 12).reshape(batch, 12) * 7 % 300
    logits = []
    place = 0
    for length in (5, 4, 1, 1, 1):
        part = words[:, place : place + length]
        positions = torch.arange(place, place + length).expand(batch, -1)
        answer = model(input_ids=part, position_ids=positions, past_key_values=cache)
        logits.append(answer.logits)
        place += length
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_prompt_and_words_are_right_and_so_is_the_cache(
    kind: torch.dtype, tolerance: float
) -> None:
    """A cache that is not written back answers the first word right and all others wrong."""
    model = small_llama(kind)
    expected, kept = written(model, 2)
    session = Session(Options.parse({}), "reference", False)
    got, cache = written(torch.compile(model, backend=backend_of(session), dynamic=False), 2)
    assert torch.linalg.vector_norm(
        (got - expected).float()
    ) <= tolerance * torch.linalg.vector_norm(expected.float())
    for layer, other in zip(cache.layers, kept.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(layer.values, other.values, rtol=tolerance, atol=tolerance)
    assert [graph.fallback for graph in session.graphs] == [[]] * len(session.graphs)


def test_step_is_one_engine_of_at_most_ten_kernels_a_layer() -> None:
    """Every kernel more is paid for each word; a copy of the cache costs more than all others."""
    session = Session(Options.parse({"precision": "fp16", "targets": "sm89"}), "reference", True)
    model = small_llama(torch.float16)
    written(torch.compile(model, backend=backend_of(session), dynamic=False), 1)
    step = session.graphs[-1]
    (engine,) = step.engines
    assert step.fallback == []
    assert "name_cache_update" in {line.partition(" at ")[0] for line in step.trace}
    inside = [
        kernel
        for kernel in engine.report.kernels
        if any(path.startswith("model.layers.") for path in kernel.modules)
    ]
    assert len(inside) <= 9 * LAYERS + 2
    assert engine.report.kernel_count <= 10 * LAYERS


@pytest.mark.parametrize("dynamic", [True, None])
@torch.no_grad()
def test_prompts_of_any_length_share_engines(dynamic: bool | None) -> None:
    """People do not write prompts of one length: each new one would be built for minutes."""
    model = small_llama()
    session = Session(Options.parse({"targets": "sm89"}), "reference", True)
    compiled = torch.compile(model, backend=backend_of(session), dynamic=dynamic)
    for lengths in ((5, 4, 1), (7, 3, 1), (9, 6, 1), (3, 8, 1)):
        caches = [StaticCache(config=CONFIG, max_cache_len=32) for _ in range(2)]
        place = 0
        for length in lengths:
            words = torch.arange(2 * length).reshape(2, length) * 7 % 300
            positions = torch.arange(place, place + length).expand(2, -1)
            expected, got = (
                run(input_ids=words, position_ids=positions, past_key_values=cache).logits
                for run, cache in zip((model, compiled), caches, strict=True)
            )
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            place += length
        for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-5)
    assert [graph.fallback for graph in session.graphs] == [[]] * len(session.graphs)
    assert [len(graph.engines) for graph in session.graphs] == [1] * len(session.graphs)
    assert len(session.graphs) <= (3 if dynamic else 5)


@pytest.mark.parametrize("padded", [False, True])
def test_generate_works_unchanged(padded: bool) -> None:
    """``generate`` of transformers is what people call: it must find the words of eager mode."""
    model = small_llama()
    prompt = torch.arange(14).reshape(2, 7) + 5
    settings: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "cache_implementation": "static",
        "pad_token_id": 0,
    }
    if padded:
        settings["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    expected = model.generate(prompt, **settings)
    session = Session(Options.parse({}), "reference", False)
    model.forward = torch.compile(model.forward, backend=backend_of(session))  # type: ignore[method-assign]
    assert torch.equal(model.generate(prompt, **settings), expected)
    assert [graph.fallback for graph in session.graphs] == [[], []]


def test_generate_compiles_with_our_backend_by_its_own_option() -> None:
    """transformers compiles the step itself where a CompileConfig names a backend."""
    model = small_llama()
    prompt = torch.arange(7).reshape(1, 7) + 5
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, cache_implementation="static", **settings)
    config = CompileConfig(
        backend="singlecard", mode=None, options={"execution": "reference"}, fullgraph=False
    )
    config._compile_all_devices = True
    got = model.generate(prompt, cache_implementation="static", compile_config=config, **settings)
    assert torch.equal(got, expected)
