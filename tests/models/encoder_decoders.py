"""Encoder-decoders: whole answers so far, and one word behind a cache."""

from __future__ import annotations

from typing import Any

import transformers as T
from torch import Tensor, nn
from transformers.exporters.exporter_dynamo import register_pytree_node
from transformers.modeling_outputs import BaseModelOutput

from tests.models.listing import Case, architecture
from tests.models.making import VOCABULARY, words
from tests.models.text_encoders import reading

SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def translating(module: nn.Module) -> Case:
    """Return an encoder-decoder that reads two sentences and the beginnings of its answers."""
    return reading(module, decoder_input_ids=words(6), use_cache=False)


@architecture("encoder-decoder")
def t5() -> Case:
    return translating(T.T5ForConditionalGeneration(T.T5Config(**T5)))


@architecture("encoder-decoder")
def flan_t5() -> Case:
    """T5 1.1 and its kin: a gated feed-forward network, embeddings that are not tied."""
    config = T.MT5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return translating(T.MT5ForConditionalGeneration(config))


@architecture("encoder-decoder")
def bart() -> Case:
    return translating(T.BartForConditionalGeneration(T.BartConfig(**SEQ2SEQ)))


@architecture("encoder-decoder")
def marian() -> Case:
    return translating(T.MarianMTModel(T.MarianConfig(**SEQ2SEQ)))


@architecture("encoder-decoder")
def pegasus() -> Case:
    return translating(T.PegasusForConditionalGeneration(T.PegasusConfig(**SEQ2SEQ)))


@architecture("decode step")
def t5_decode() -> Case:
    return seq2seq_step(*t5())


@architecture("decode step")
def bart_decode() -> Case:
    return seq2seq_step(*bart())


def seq2seq_step(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Case:
    """Return an encoder-decoder that writes one more word; its encoder has read."""
    encoder = module.eval().get_encoder()  # type: ignore[operator]
    given = {name: value for name, value in kwargs.items() if name != "use_cache"}
    begun = given.pop("decoder_input_ids")
    read = encoder(**given).last_hidden_state
    mask = {name: given[name] for name in given if name == "attention_mask"}
    return module, (), answering(module, read, begun, words(1, len(read)), **mask)


def answering(
    module: nn.Module, read: Tensor, begun: Tensor, fresh: Tensor, room: int = 16, **given: Any
) -> dict[str, Any]:
    """Return arguments that write words behind the beginnings of answers in a static cache.

    Args:
        module: an encoder-decoder in eval mode.
        read: what its encoder answered: (rows, places, width).
        begun, fresh: words that the cache holds, and those that are written: (rows, words).
        room: words that the cache holds at most.
        given: further arguments.
    """
    for kind in (T.EncoderDecoderCache, T.StaticCache):
        register_pytree_node(kind)
    config = module.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    cache = T.EncoderDecoderCache(
        T.StaticCache(config=config, max_cache_len=room),
        T.StaticCache(config=config, max_cache_len=read.shape[1]),
    )
    given |= {
        "encoder_outputs": BaseModelOutput(last_hidden_state=read),
        "past_key_values": cache,
        "use_cache": True,
    }
    module(**given, decoder_input_ids=begun)
    return given | {"decoder_input_ids": fresh}
