"""Segmentation and depth: an answer for each pixel."""

from __future__ import annotations

import torch
import transformers as T

from tests.models.listing import Case, architecture
from tests.models.making import image, lively, vision
from tests.models.vision_transformers import VIT


@architecture("segmentation")
def segformer() -> Case:
    config = T.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
        num_labels=5,
    )
    return vision(T.SegformerForSemanticSegmentation(config))


@architecture("segmentation")
def upernet() -> Case:
    backbone = T.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 2, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = T.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=4, use_auxiliary_head=False
    )
    return vision(T.UperNetForSemanticSegmentation(config))


@architecture("segmentation")
def mask2former() -> Case:
    backbone = T.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = T.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
    )
    return vision(T.Mask2FormerModel(config))  # without the loss, which needs scipy


@architecture("segmentation")
def sam() -> Case:
    config = T.SamConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "output_channels": 32,
            "num_pos_feats": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )
    given = {"pixel_values": image(), "input_points": torch.rand(1, 1, 2, 2) * 60}
    return lively(T.SamModel(config)), (), given


@architecture("segmentation")
def dpt() -> Case:
    config = T.DPTConfig(
        **VIT | {"num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    return vision(T.DPTForDepthEstimation(config), 32)


@architecture("segmentation")
def depth_anything() -> Case:
    backbone = T.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = T.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
    )
    return vision(T.DepthAnythingForDepthEstimation(config), 56)
