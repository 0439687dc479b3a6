"""Text and images together."""

from __future__ import annotations

import transformers as T

from tests.models.decoders import DECODER
from tests.models.listing import Case, architecture
from tests.models.making import VOCABULARY, image, lively, words
from tests.models.text_encoders import reading
from tests.models.vision_transformers import VIT

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}


@architecture("multimodal")
def clip() -> Case:
    config = T.CLIPConfig(
        text_config=TEXT | {"eos_token_id": 99}, vision_config=VIT, projection_dim=16
    )
    return reading(T.CLIPModel(config), pixel_values=image(32, 2))


@architecture("multimodal")
def siglip() -> Case:
    text = TEXT | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = T.SiglipConfig(text_config=text, vision_config=VIT)
    return reading(T.SiglipModel(config), pixel_values=image(32, 2))


@architecture("multimodal")
def blip() -> Case:
    text = TEXT | {
        "encoder_hidden_size": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "sep_token_id": 2,
        "eos_token_id": 2,
    }
    config = T.BlipConfig(text_config=text, vision_config=VIT, projection_dim=16)
    return reading(T.BlipForConditionalGeneration(config), pixel_values=image(32, 2))


# Checks the number of image tokens with `torch._check_tensor_all`.
@architecture("multimodal", scalars=True)
def llava() -> Case:
    config = T.LlavaConfig(
        text_config=DECODER | {"model_type": "llama"},
        vision_config=VIT | {"model_type": "clip_vision_model", "image_size": 16},
        image_token_index=99,
        image_seq_length=4,
    )
    given = words(12, 1)
    given[0, 2:6] = 99
    module = lively(T.LlavaForConditionalGeneration(config)).eval()
    kwargs = {"input_ids": given, "pixel_values": image(16), "use_cache": False}
    module(**kwargs)  # its first call sets up hooks, which Dynamo cannot follow
    return module, (), kwargs


# Chooses patches by `nonzero` and `unique`, whose answers have no known size.
@architecture("multimodal", left_out=3, engines=9)
def vilt() -> Case:
    config = T.ViltConfig(**VIT, vocab_size=VOCABULARY, max_position_embeddings=20)
    return reading(T.ViltModel(config), pixel_values=image(32, 2))


@architecture("multimodal")
def trocr() -> Case:
    """An image encoder with a text decoder that looks at it."""
    decoder_config = T.TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        max_position_embeddings=40,
        cross_attention_hidden_size=32,
        pad_token_id=0,
    )
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        T.ViTConfig(**VIT), decoder_config
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    module = lively(T.VisionEncoderDecoderModel(config))
    given = {"pixel_values": image(32), "decoder_input_ids": words(6, 1), "use_cache": False}
    return module, (), given
