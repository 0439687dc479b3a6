"""Audio."""

from __future__ import annotations

import torch
import transformers as T

from tests.models.encoder_decoders import SEQ2SEQ, seq2seq_step
from tests.models.listing import Case, architecture
from tests.models.making import labelling, lively, sound, words

SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 40,
}


@architecture("audio")
def whisper() -> Case:
    sizes = {name: size for name, size in SEQ2SEQ.items() if name != "max_position_embeddings"}
    config = T.WhisperConfig(**sizes, max_source_positions=50, num_mel_bins=16)
    given = {
        "input_features": torch.randn(1, 16, 100),
        "decoder_input_ids": words(5, 1),
        "use_cache": False,
    }
    return lively(T.WhisperForConditionalGeneration(config)), (), given


@architecture("decode step")
def whisper_decode() -> Case:
    return seq2seq_step(*whisper())


@architecture("audio")
def wav2vec2() -> Case:
    return lively(T.Wav2Vec2ForCTC(T.Wav2Vec2Config(**SPEECH))), (sound(),), {}


@architecture("audio")
def hubert() -> Case:
    return lively(T.HubertForCTC(T.HubertConfig(**SPEECH))), (sound(),), {}


@architecture("audio")
def wavlm() -> Case:
    return lively(T.WavLMForCTC(T.WavLMConfig(**SPEECH))), (sound(),), {}


@architecture("audio")
def audio_spectrogram_transformer() -> Case:
    config = T.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_length=64,
        num_mel_bins=32,
    )
    return lively(labelling(T.ASTForAudioClassification, config)), (torch.randn(1, 64, 32),), {}


# Computes the sizes of its padding with tensors, by `item()`.
@architecture("audio", left_out=32, engines=25)
def encodec_decoder() -> Case:
    config = T.EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_size=16,
        codebook_dim=16,
        upsampling_ratios=[4, 2],
        num_lstm_layers=2,
    )
    return lively(T.EncodecModel(config).decoder), (torch.randn(1, 16, 20),), {}
