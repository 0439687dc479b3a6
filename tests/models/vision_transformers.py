"""Vision transformers, with windows and without."""

from __future__ import annotations

import transformers as T

from tests.models.listing import Case, architecture
from tests.models.making import labelling, vision

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@architecture("vision transformer")
def vit() -> Case:
    return vision(labelling(T.ViTForImageClassification, T.ViTConfig(**VIT)), 32)


@architecture("vision transformer")
def vit_other_size() -> Case:
    """ViT on a larger image than it was made for, its positions interpolated."""
    return vision(T.ViTModel(T.ViTConfig(**VIT)), 48, interpolate_pos_encoding=True)


@architecture("vision transformer")
def deit() -> Case:
    return vision(labelling(T.DeiTForImageClassificationWithTeacher, T.DeiTConfig(**VIT)), 32)


@architecture("vision transformer")
def beit() -> Case:
    config = T.BeitConfig(**VIT, use_relative_position_bias=True, layer_scale_init_value=0.5)
    return vision(labelling(T.BeitForImageClassification, config), 32)


@architecture("vision transformer")
def dinov2() -> Case:
    sizes = VIT | {"image_size": 56, "patch_size": 14}
    return vision(T.Dinov2Model(T.Dinov2Config(**sizes)), 70)


@architecture("vision transformer")
def swin() -> Case:
    config = T.SwinConfig(
        image_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    return vision(labelling(T.SwinForImageClassification, config))


@architecture("vision transformer")
def swin_v2() -> Case:
    config = T.Swinv2Config(
        image_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    return vision(labelling(T.Swinv2ForImageClassification, config))


@architecture("vision transformer")
def mobilevit() -> Case:
    config = T.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 16, 24],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
    )
    return vision(labelling(T.MobileViTForImageClassification, config))


@architecture("vision transformer")
def pvt_v2() -> Case:
    config = T.PvtV2Config(
        image_size=64,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 2, 4],
    )
    return vision(labelling(T.PvtV2ForImageClassification, config))


@architecture("vision transformer")
def vitdet() -> Case:
    config = T.VitDetConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        pretrain_image_size=32,
        window_block_indices=[0],
        window_size=3,
        use_relative_position_embeddings=True,
    )
    return vision(T.VitDetModel(config))


@architecture("vision transformer")
def poolformer() -> Case:
    config = T.PoolFormerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], layer_scale_init_value=0.5
    )
    return vision(labelling(T.PoolFormerForImageClassification, config))
