"""State spaces and other recurrences: a prompt, and one word behind it."""

from __future__ import annotations

from typing import Any

import transformers as T
from torch import nn
from transformers.exporters.exporter_dynamo import register_pytree_node

from tests.models.listing import Case, architecture
from tests.models.making import VOCABULARY, lively, words

#: Tokens of a prompt. Dynamo sees a scan of few levels here, other tracers a loop over the tokens:
#: a dozen would hide what a prompt of any use takes.
LENGTH = 64


@architecture("state-space")
def mamba() -> Case:
    config = T.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2)
    return lively(T.MambaForCausalLM(config)), (), {"input_ids": words(LENGTH), "use_cache": False}


@architecture("state-space")
def mamba2() -> Case:
    config = T.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        n_groups=2,
        chunk_size=8,
    )
    return lively(T.Mamba2ForCausalLM(config)), (), {"input_ids": words(12), "use_cache": False}


@architecture("state-space")
def rwkv() -> Case:
    config = T.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    return lively(T.RwkvForCausalLM(config)), (), {"input_ids": words(6), "use_cache": False}


@architecture("state-space")
def falcon_mamba() -> Case:
    config = T.FalconMambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2
    )
    return (
        lively(T.FalconMambaForCausalLM(config)),
        (),
        {"input_ids": words(LENGTH), "use_cache": False},
    )


@architecture("decode step")
def mamba_decode() -> Case:
    return recurrent_step(*mamba())


@architecture("decode step")
def mamba2_decode() -> Case:
    return recurrent_step(*mamba2())


def recurrent_step(module: nn.Module, args: Any, kwargs: Any) -> Case:
    """Return a state-space model that writes one word behind a prompt."""
    return module, (), going_on(module.eval())


def going_on(module: nn.Module, rows: int = 2) -> dict[str, Any]:
    """Return arguments that write one word behind so many prompts."""
    state = module(input_ids=words(6, rows), use_cache=True).cache_params
    register_pytree_node(type(state))
    return {"input_ids": words(1, rows), "cache_params": state, "use_cache": True}
