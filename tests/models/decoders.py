"""Decoders: a prompt, and one word behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch import nn
from transformers.exporters.exporter_dynamo import register_pytree_node

from tests.models.listing import Case, architecture
from tests.models.making import VOCABULARY, lively, padding, words

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN = {name: size for name, size in DECODER.items() if name != "num_key_value_heads"}


def prompt(module: nn.Module) -> Case:
    """Return a decoder that reads two prompts, the second of them padded on the left."""
    given = {"input_ids": words(), "attention_mask": padding(left=True), "use_cache": False}
    return lively(module), (), given


def step(module: nn.Module, **kwargs: Any) -> Case:
    """Return a decoder that writes one word behind a prompt in a static cache."""
    return lively(module).eval(), (), writing(module) | kwargs


def writing(
    module: nn.Module, rows: int = 2, before: int = 6, more: int = 1, room: int = 16
) -> dict[str, Any]:
    """Return arguments that write words behind a prompt in a static cache.

    Args:
        module: a decoder in eval mode, which reads the prompt.
        rows: how many prompts.
        before, more: words of a prompt, and of what is written behind it.
        room: words that the cache holds at most.
    """
    # With it, the cache is copied like any argument, and its tensors are among the answers.
    register_pytree_node(T.StaticCache)
    cache = T.StaticCache(config=module.config, max_cache_len=room)
    places = torch.arange(before + more).repeat(rows, 1)
    read, fresh = places.split([before, more], 1)
    module(input_ids=words(before, rows), position_ids=read, past_key_values=cache)
    return {"input_ids": words(more, rows), "position_ids": fresh, "past_key_values": cache}


def decoder(
    name: str, make: Callable[[], nn.Module], decode: bool = True, masked: bool = False
) -> None:
    """Put a decoder on the list, reading a prompt and, with ``decode``, writing a word.

    ``masked`` gives the mask with the word, as ``generate`` does: OPT would otherwise make one,
    of a size that it reads from the cache.
    """

    def read() -> Case:
        return prompt(make())

    def write() -> Case:
        mask = {"attention_mask": torch.ones(2, 7, dtype=torch.long)} if masked else {}
        return step(make(), **mask)

    read.__name__, write.__name__ = name, f"{name}_decode"
    architecture("decoder")(read)
    if decode:
        architecture("decode step")(write)


decoder("llama", lambda: T.LlamaForCausalLM(T.LlamaConfig(**DECODER)))
decoder(
    "llama3",  # angles scaled for long contexts
    lambda: T.LlamaForCausalLM(
        T.LlamaConfig(
            **DECODER,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        )
    ),
    decode=False,
)
decoder("mistral", lambda: T.MistralForCausalLM(T.MistralConfig(**DECODER, sliding_window=5)))
decoder("qwen2", lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**DECODER)))
decoder("qwen3", lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**DECODER, head_dim=16)))
decoder(
    "gemma2",  # scores capped, every other layer with a window
    lambda: T.Gemma2ForCausalLM(
        T.Gemma2Config(**DECODER, head_dim=16, sliding_window=5, query_pre_attn_scalar=16)
    ),
)
decoder(
    "gemma3",
    lambda: T.Gemma3ForCausalLM(
        T.Gemma3TextConfig(
            **DECODER,
            head_dim=16,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
)
decoder("phi3", lambda: T.Phi3ForCausalLM(T.Phi3Config(**DECODER)))
decoder("phi", lambda: T.PhiForCausalLM(T.PhiConfig(**DECODER, partial_rotary_factor=0.5)))
decoder("cohere", lambda: T.CohereForCausalLM(T.CohereConfig(**DECODER)))
decoder("olmo2", lambda: T.Olmo2ForCausalLM(T.Olmo2Config(**DECODER)))
decoder("stablelm", lambda: T.StableLmForCausalLM(T.StableLmConfig(**DECODER)))
decoder("starcoder2", lambda: T.Starcoder2ForCausalLM(T.Starcoder2Config(**DECODER)))
decoder("granite", lambda: T.GraniteForCausalLM(T.GraniteConfig(**DECODER)))
decoder(
    "gpt2",
    lambda: T.GPT2LMHeadModel(
        T.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=40)
    ),
)
decoder(
    "gptj",
    lambda: T.GPTJForCausalLM(
        T.GPTJConfig(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=40, rotary_dim=8
        )
    ),
)
decoder("gpt_neox", lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**PLAIN)))
decoder(
    "opt",
    lambda: T.OPTForCausalLM(
        T.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
            word_embed_proj_dim=32,
            pad_token_id=0,
        )
    ),
    masked=True,
)
decoder(
    "falcon",
    lambda: T.FalconForCausalLM(
        T.FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            new_decoder_architecture=True,
        )
    ),
)
decoder(
    "falcon_alibi",
    lambda: T.FalconForCausalLM(
        T.FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            alibi=True,
            multi_query=False,
        )
    ),
    decode=False,
)
decoder(
    "bloom",
    lambda: T.BloomForCausalLM(
        T.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2)
    ),
    decode=False,
)
decoder(
    "mpt",
    lambda: T.MptForCausalLM(
        T.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=2, max_seq_len=40)
    ),
    decode=False,
)
decoder(
    "mixtral",
    lambda: T.MixtralForCausalLM(T.MixtralConfig(**DECODER, num_local_experts=4)),
)
decoder(
    "qwen3_moe",
    lambda: T.Qwen3MoeForCausalLM(
        T.Qwen3MoeConfig(
            **DECODER,
            moe_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
            head_dim=16,
            norm_topk_prob=True,
        )
    ),
)
