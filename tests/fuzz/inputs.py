"""What forward is given: an expression for each call, of that call's sizes and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz.writer import Choices


@dataclass(frozen=True)
class Sizes:
    """Batch, length, height and width of a call, and its numbers."""

    batch: int
    length: int
    height: int
    width: int
    whole: int
    real: float

    @classmethod
    def of(cls, numbers: Sequence[int], like: Sizes | None, vary: int) -> Sizes:
        """Return the sizes of a call; those whose bit in ``vary`` is not set are as in ``like``."""
        batches, sides = (2, 1, 3, 4, 5), (8, 4, 6, 12, 7, 9, 16)
        made = cls(
            batches[numbers[0] % 5],
            (5, 4, 3, 2, 1, 6, 7, 8, 9, 11, 16)[numbers[1] % 11],
            sides[numbers[2] % 7],
            sides[numbers[3] % 7],
            (2, 1, 3, 0, -1, 5, -3, 7)[numbers[4] % 8],
            (0.5, 2.0, -1.0, 0.0, 1.5)[numbers[5] % 5],
        )
        if like is None:
            return made
        return cls(
            *(
                getattr(made if vary >> place & 1 else like, name)
                for place, name in enumerate(("batch", "length", "height", "width"))
            ),
            made.whole,
            made.real,
        )


Text = Callable[[Sizes, Choices], str]


def _layout(shape: tuple[int, ...], choices: Choices) -> str:
    """Return a tensor of a shape, in one of the layouts that callers have."""
    sizes = ", ".join(map(str, shape))
    last = shape[-1]
    swapped = ", ".join(map(str, (*shape[:-2], shape[-1], shape[-2]))) if len(shape) > 1 else sizes
    kind = choices.below(12)
    if kind == 7 and len(shape) > 1:
        return f"torch.randn({swapped}).transpose(-1, -2)"
    if kind == 8:
        return f"torch.randn({', '.join(map(str, (*shape[:-1], 2 * last)))})[..., ::2]"
    if kind == 9 and len(shape) > 1:
        return f"torch.randn({', '.join(map(str, (shape[0], 1, *shape[2:])))}).expand({sizes})"
    if kind == 10 and len(shape) == 4:
        return f"torch.randn({sizes}).to(memory_format=torch.channels_last)"
    if kind == 11:
        return f"torch.randn({', '.join(map(str, (shape[0] + 1, *shape[1:])))})[1:]"
    return f"torch.randn({sizes})"


def _typed(text: str, choices: Choices) -> str:
    kind = choices.below(16)
    suffix = {13: ".half()", 14: ".bfloat16()", 15: ".double()"}.get(kind, "")
    return f"{text}{suffix}"


def _channels(choices: Choices) -> int:
    return int(choices.one_of(8, 4, 6, 12, 16, 3))


def words(sizes: Sizes, choices: Choices) -> str:
    width = _channels(choices)
    return _typed(_layout((sizes.batch, sizes.length, width), choices), choices)


def rows(sizes: Sizes, choices: Choices) -> str:
    width = _channels(choices)
    return _typed(_layout((sizes.batch, width), choices), choices)


def image(sizes: Sizes, choices: Choices) -> str:
    width = int(choices.one_of(4, 3, 8, 6))
    return _typed(_layout((sizes.batch, width, sizes.height, sizes.width), choices), choices)


def signal(sizes: Sizes, choices: Choices) -> str:
    width = _channels(choices)
    return _typed(_layout((sizes.batch, width, sizes.length), choices), choices)


def vector(sizes: Sizes, choices: Choices) -> str:
    return _layout((_channels(choices),), choices)


def times(sizes: Sizes, choices: Choices) -> str:
    return f"torch.rand({sizes.batch}) * 10"


def scalar(sizes: Sizes, choices: Choices) -> str:
    return f"torch.tensor({sizes.real})"


def ids(sizes: Sizes, choices: Choices) -> str:
    kind = choices.one_of("", ".int()", ".t().contiguous().t()")
    return f"torch.randint(0, 11, ({sizes.batch}, {sizes.length})){kind}"


def mask(sizes: Sizes, choices: Choices) -> str:
    shape = f"{sizes.batch}, {sizes.length}"
    return str(
        choices.one_of(
            f"torch.arange({sizes.length}).expand({shape}) < 2",
            f"torch.rand({shape}) > 0.3",
            f"torch.zeros({shape}, dtype=torch.bool)",
            f"torch.ones({shape}, dtype=torch.bool)",
        )
    )


def image_mask(sizes: Sizes, choices: Choices) -> str:
    return f"torch.rand({sizes.batch}, 1, {sizes.height}, {sizes.width}) > 0.5"


def empty(sizes: Sizes, choices: Choices) -> str:
    return str(
        choices.one_of(
            f"torch.randn({sizes.batch}, 0, 8)",
            "torch.randn(0, 8)",
            f"torch.randn(0, {sizes.length}, 4)",
        )
    )


def whole(sizes: Sizes, choices: Choices) -> str:
    return str(sizes.whole)


def real(sizes: Sizes, choices: Choices) -> str:
    return str(sizes.real)


def truth(sizes: Sizes, choices: Choices) -> str:
    return str(sizes.whole % 2 == 0)


#: Tensors of floats come several times, for most steps need one.
INPUTS: dict[str, Text] = {
    "words": words, "image": image, "rows": rows, "signal": signal, "words too": words,
    "image too": image, "vector": vector, "times": times, "scalar": scalar, "ids": ids,
    "mask": mask, "image mask": image_mask, "empty": empty, "whole": whole, "real": real,
    "truth": truth,
}  # fmt: skip
