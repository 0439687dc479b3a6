"""Real data for the INT8 benchmark, all of it from installed packages, and a CNN trained on it.

Sentences come from the descriptions of scikit-learn's data sets (wine, faces, earth's forests,
newsgroups, ...), from the language reference that Python carries as ``pydoc_data.topics`` (each
version of Python has its own), and from the project's own examples. Images are scikit-learn's
handwritten digits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

CALIBRATION_SENTENCES = 128
EVALUATION_SENTENCES = 300
CALIBRATION_IMAGES = 64

#: Of the language reference only so many sentences, for there are thousands, all of one field.
REFERENCE_SENTENCES = 350

#: Ends of words that end no sentence.
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|et al|etc|vs|cf|Dr|Mr|Prof|Vol|No|pp|Fig)|\b[A-Z])\.$"
)


def sentences() -> tuple[list[str], list[str]]:
    """Return 128 English sentences to calibrate with and 300 others to evaluate with.

    They have 5 to 60 words and come in an order that is shuffled once and always the same.
    """
    dice = random.Random(0)
    reference = sorted(set(reference_sentences()))
    dice.shuffle(reference)
    pool = {*description_sentences(), *example_sentences(), *reference[:REFERENCE_SENTENCES]}
    found = sorted(pool)
    dice.shuffle(found)
    needed = CALIBRATION_SENTENCES + EVALUATION_SENTENCES
    if len(found) < needed:
        raise RuntimeError(f"the packages hold {len(found)} sentences, {needed} are needed")
    return found[:CALIBRATION_SENTENCES], found[CALIBRATION_SENTENCES:needed]


def description_sentences() -> Iterator[str]:
    """Yield sentences of the descriptions of scikit-learn's data sets."""
    for file in sorted(
        resources.files("sklearn.datasets.descr").iterdir(), key=lambda file: file.name
    ):
        if file.name.endswith(".rst"):
            yield from split_sentences(file.read_text(encoding="utf-8"))


def reference_sentences() -> Iterator[str]:
    """Yield sentences of Python's language reference."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from split_sentences(topics[name])


def example_sentences() -> tuple[str, ...]:
    """Return the sentences of the project's examples: everyday subjects, some in pairs."""
    found: list[str] = []
    for name in ("models.py", "sentence_embeddings.py"):
        text = (Path(__file__).parent.parent / "examples" / name).read_text(encoding="utf-8")
        listed = re.search(r"^SENTENCES = \((.*?)^\)", text, re.DOTALL | re.MULTILINE)
        assert listed is not None, f"{name} lists no sentences"
        found += re.findall(r'"(.+?)"', listed[1])
    return tuple(found)


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of reStructuredText, without its tables, code, lists and headings."""
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r"^\s*(?:\.\.|[-*#:|+=>]|\d+[.)])|::$", paragraph, re.MULTILINE):
            continue
        plain = re.sub(r":\w+:`~?([^`<]+?)(?:\s*<[^>]*>)?`_*", r"\1", " ".join(paragraph.split()))
        plain = re.sub(r"\s?\[\w+\]_?|`_+|[`*_]", "", plain)
        start = 0
        for end in re.finditer(r"[.!?](?=\s+[A-Z]|$)", plain):
            sentence = plain[start : end.end()].strip()
            if ABBREVIATION.search(sentence):
                continue
            start = end.end()
            letters = sum(letter.isalnum() or letter in " ,.'-" for letter in sentence)
            if (
                5 <= len(sentence.split()) <= 60
                and sentence[0].isupper()
                and "http" not in sentence
                and letters >= 0.95 * len(sentence)
            ):
                yield sentence


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: images [N, 1, 8, 8] from 0 to 1, labels [N] from 0 to 9.

    ``calibration`` are images of ``train``; none of ``test`` is among either.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    calibration: Tensor


def digits(seed: int = 0) -> Digits:
    """Return scikit-learn's 1,797 digits: 1,297 to train with, 500 to test with, split by seed."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(loaded.images).float().unsqueeze(1)[order] / 16
    labels = torch.from_numpy(loaded.target).long()[order]
    return Digits(
        train=images[500:],
        train_labels=labels[500:],
        test=images[:500],
        test_labels=labels[:500],
        calibration=images[500 : 500 + CALIBRATION_IMAGES],
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norms, beside a shortcut: 1 x 1 where sizes change."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.first_norm(self.first(x)))
        return relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """A small ResNet for 8 x 8 images: a stem and blocks of 32, 64, 64 and 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            ResidualBlock(32, 32, 1),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 64, 1),
            ResidualBlock(64, 128, 2),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (images, 10)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def residual_cnn(seed: int = 0) -> ResidualCNN:
    """Return the CNN with seeded random weights, which leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualCNN()


def train(
    model: nn.Module, data: Digits, epochs: int = 12, seed: int = 0, cache: Path | None = None
) -> nn.Module:
    """Train on the digits, on one thread and always in the same order; return the model, in eval.

    Args:
        cache: a file: weights that it holds are loaded instead; what was trained is kept there.
    """
    if cache is not None and cache.exists():
        model.load_state_dict(torch.load(cache, weights_only=True))
        return model.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(model, data, epochs, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), cache)
    return model.eval()


def fit(model: nn.Module, data: Digits, epochs: int, generator: torch.Generator) -> None:
    size = 64
    steps = epochs * -(-len(data.train) // size)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train), generator=generator).split(size):
            optimizer.zero_grad()
            cross_entropy(model(data.train[batch]), data.train_labels[batch]).backward()
            optimizer.step()
            schedule.step()
