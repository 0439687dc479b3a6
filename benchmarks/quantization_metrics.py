"""What the INT8 benchmark measures: how near quantized outputs are to those of FP32."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


def mean_cosine(expected: Tensor, got: Tensor) -> float:
    """Return the mean over rows of the cosine of expected and got row: 1 is the same direction."""
    return float(cosine_similarity(expected.double(), got.double(), dim=1).mean())


def relative_l2(expected: Tensor, got: Tensor) -> float:
    """Return the length of the difference by that of what was expected, over all elements."""
    return float((expected.double() - got.double()).norm() / expected.double().norm())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).double().mean())


def spearman(expected: Tensor, got: Tensor) -> float:
    """Return how well embeddings keep the order of all pairs' similarities: 1 is the same order.

    It is the correlation of the ranks of the cosine similarities of all pairs of different rows;
    equal similarities share the mean of their ranks.
    """
    first, second = (rank(pair_similarities(rows)) for rows in (expected, got))
    return float(np.corrcoef(first, second)[0, 1])


def pair_similarities(rows: Tensor) -> np.ndarray:
    """Return the cosine similarity of each pair of different rows, [n * (n - 1) / 2]."""
    directions = normalize(rows.double(), dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    similarities: np.ndarray = (directions @ directions.T)[first, second].numpy()
    return similarities


def rank(values: np.ndarray) -> np.ndarray:
    """Return the place of each value in order, from 0; equal values share their mean place."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    means: np.ndarray = (ends - 1 - (sizes - 1) / 2)[group]
    return means
