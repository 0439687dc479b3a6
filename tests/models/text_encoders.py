"""Text encoders."""

from __future__ import annotations

from typing import Any

import transformers as T
from torch import nn

from tests.models.listing import Case, architecture
from tests.models.making import VOCABULARY, lively, padding, words

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def reading(module: nn.Module, length: int = 12, **kwargs: Any) -> Case:
    """Return a text encoder that reads two sentences, the second of them padded."""
    mask = padding(length)
    given = {"input_ids": words(length) * mask, "attention_mask": mask, **kwargs}
    return lively(module), (), given


@architecture("text encoder")
def bert() -> Case:
    return reading(T.BertForMaskedLM(T.BertConfig(**ENCODER)))


@architecture("text encoder")
def roberta() -> Case:
    config = T.RobertaConfig(**ENCODER, pad_token_id=0)
    return reading(T.RobertaForSequenceClassification(config))


@architecture("text encoder")
def distilbert() -> Case:
    config = T.DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    return reading(T.DistilBertForTokenClassification(config))


@architecture("text encoder")
def albert() -> Case:
    return reading(T.AlbertForMaskedLM(T.AlbertConfig(**ENCODER, embedding_size=16)))


@architecture("text encoder")
def electra() -> Case:
    return reading(T.ElectraForPreTraining(T.ElectraConfig(**ENCODER, embedding_size=16)))


# Cuts its positions at a constant tensor, in each layer.
@architecture("text encoder", scalars=True)
def deberta() -> Case:
    config = T.DebertaConfig(
        **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=8
    )
    return reading(T.DebertaForMaskedLM(config))


@architecture("text encoder")
def deberta_v2() -> Case:
    config = T.DebertaV2Config(
        **ENCODER,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    )
    return reading(T.DebertaV2ForMaskedLM(config))


@architecture("text encoder")
def mpnet() -> Case:
    return reading(T.MPNetModel(T.MPNetConfig(**ENCODER, pad_token_id=0)))


@architecture("text encoder")
def modernbert() -> Case:
    config = T.ModernBertConfig(
        **ENCODER | {"num_hidden_layers": 3},
        global_attn_every_n_layers=3,
        local_attention=6,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
        cls_token_id=1,
        sep_token_id=2,
    )
    return reading(T.ModernBertForMaskedLM(config))


# Asks whether the mask has global tokens, by `item()`: Dynamo leaves that to Python.
@architecture("text encoder", left_out=1, engines=4)
def longformer() -> Case:
    config = T.LongformerConfig(**ENCODER, attention_window=4, pad_token_id=0)
    return reading(T.LongformerModel(config), 16)


# A Fourier transform of complex numbers, which TensorRT does not compute with.
@architecture("text encoder", left_out=6, engines=3)
def fnet() -> Case:
    config = T.FNetConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    return lively(T.FNetModel(config)), (), {"input_ids": words()}
