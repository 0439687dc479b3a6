"""Convolutional classifiers."""

from __future__ import annotations

import transformers as T

from tests.models.listing import Case, architecture
from tests.models.making import labelling, vision


@architecture("cnn")
def resnet() -> Case:
    config = T.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2])
    return vision(labelling(T.ResNetForImageClassification, config))


@architecture("cnn")
def regnet() -> Case:
    config = T.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 2, 2, 1], groups_width=8
    )
    return vision(labelling(T.RegNetForImageClassification, config))


# Twenty-seven layers without a shortcut amplify rounding: PyTorch's own error, beside float64, is
# 1e-5 in these two.
@architecture("cnn", limit=5e-5)
def mobilenet_v1() -> Case:
    config = T.MobileNetV1Config(depth_multiplier=0.25, image_size=64)
    return vision(labelling(T.MobileNetV1ForImageClassification, config))


@architecture("cnn", limit=5e-5)
def mobilenet_v2() -> Case:
    config = T.MobileNetV2Config(depth_multiplier=0.35, image_size=64)
    return vision(labelling(T.MobileNetV2ForImageClassification, config))


@architecture("cnn")
def efficientnet() -> Case:
    config = T.EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=0.25, image_size=64, hidden_dim=320
    )
    return vision(labelling(T.EfficientNetForImageClassification, config))


@architecture("cnn")
def convnext() -> Case:
    config = T.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    return vision(labelling(T.ConvNextForImageClassification, config))


@architecture("cnn")
def convnext_v2() -> Case:
    config = T.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    return vision(labelling(T.ConvNextV2ForImageClassification, config))


@architecture("cnn")
def bit() -> Case:
    config = T.BitConfig(
        embedding_size=16, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 2, 1], num_groups=4
    )
    return vision(labelling(T.BitForImageClassification, config))
