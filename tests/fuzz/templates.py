"""Steps of one op each: a line with places for values, axes and numbers.

| place | is filled with |
| --- | --- |
| `{x}` `{f}` `{i}` `{b}` | a tensor of any type, of floats, of integers, of truth values |
| `{f4}` | a tensor of floats with four axes; so for the others and other numbers |
| `{g}` `{h}` | a tensor of floats that broadcasts with, or has the shape of, the first tensor |
| `{m}` | truth values that broadcast with the first tensor |
| `{d}` `{e}` | an axis of the first tensor |
| `{n}` | the extent of axis `{d}`, as a number or as an expression |
| `{k}` `{r}` `{t}` | an integer, a real, a truth value: an argument of forward's or a literal |
| `{p}` | an integer of 1 to 4 |

The same letter is the same value: `torch.mul({f}, {f})` is a square.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from tests.fuzz.writer import Unfit, Writer

_ELEMENTWISE = """
F.relu({f})
F.gelu({f})
F.gelu({f}, approximate='tanh')
F.silu({f})
F.mish({f})
F.elu({f})
F.selu({f})
F.celu({f}, 0.5)
F.leaky_relu({f}, 0.2)
F.hardswish({f})
F.hardsigmoid({f})
F.hardtanh({f})
F.softplus({f})
F.softsign({f})
F.logsigmoid({f})
F.relu6({f})
F.softshrink({f}, 0.3)
F.hardshrink({f}, 0.3)
F.threshold({f}, 0.1, 0.5)
torch.tanh({f})
torch.sigmoid({f})
torch.exp({f}.clamp(max=2))
torch.log({f}.abs() + 0.5)
torch.log1p({f}.abs())
torch.sqrt({f}.abs() + 0.1)
torch.rsqrt({f}.square() + 0.1)
torch.reciprocal({f}.abs() + 0.5)
torch.sin({f})
torch.cos({f})
torch.atan({f})
torch.erf({f})
torch.abs({x})
torch.neg({f})
torch.sign({f})
torch.floor({f})
torch.ceil({f})
torch.round({f})
torch.trunc({f})
torch.frac({f})
torch.square({f})
torch.nan_to_num({f})
torch.isfinite({f})
torch.logical_not({x})
torch.clamp({f}, -0.5, 0.5)
torch.clamp({f}, min={r})
torch.clamp({f}, max={g})
torch.pow({f}, 2)
torch.pow({f}.abs() + 0.1, {g})
torch.pow({f}, 3)
{f}.abs() ** 0.5
{f} + {g}
{f} - {g}
{f} * {g}
{f} + {f}
{f} * {f}
{f} / ({g}.abs() + 0.5)
{f} * {r}
{f} + {r}
{r} - {f}
{f} / {p}
{f} + {k}
{f} * {k}
{k} - {f}
{i} + {k}
{i} * {k}
{i} - {i}
{i} // {p}
{i} % {p}
{i} % {k}
{f} // 0.7
torch.remainder({f}, 1.5)
torch.fmod({f}, 1.5)
torch.atan2({f}, {g})
torch.maximum({f}, {g})
torch.minimum({f}, {g})
torch.hypot({f}, {g})
torch.lerp({f}, {h}, 0.3)
torch.addcmul({f}, {f}, {h}, value=0.5)
{f}.where({m}, {g})
torch.where({f} > 0, {f}, {r})
{f}.where({m}, 0.0)
{f}.masked_fill({m}, {r})
{f}.masked_fill({f} > 1, -1.0)
{f} > {g}
{f} <= {r}
{f} == {f}
{i} == {k}
{i} < {p}
{f} != {g}
torch.logical_and({b}, {m})
{b} | {m}
{b} & ~{m}
{b} ^ {m}
~{b}
{i} & {p}
{i} << 1
{b}.float()
{b}.long()
{i}.float()
{f}.long()
{f}.int()
{f}.half()
{f}.bfloat16()
{f}.double()
{f}.float()
{f}.to({f}.dtype)
{f}.type_as({g})
{f}.bool()
{f}.clone()
{f}.contiguous()
{f}.detach()
torch.zeros_like({f}) + {f}
torch.ones_like({x})
torch.full_like({f}, {r})
{f}.new_zeros({f}.shape)
{f}.new_full(({p}, {n}), {r})
"""

_REDUCTIONS = """
{f}.sum()
{f}.mean()
{f}.amax()
{f}.max()
{f}.std()
{f}.sum({d})
{f}.sum({d}, keepdim=True)
{f}.mean({d}, keepdim=True)
{f}.mean(({d}, {e}))
{f}.amax({d})
{f}.amin({d}, keepdim=True)
{f}.max({d})[0]
{f}.min({d}).values
{f}.max({d}).indices
{f}.argmax({d})
{f}.argmin({d}, keepdim=True)
{f}.var({d}, keepdim=True)
{f}.var({d}, unbiased=False)
{f}.std({d})
{f}.prod({d})
{f}.norm(dim={d})
torch.linalg.vector_norm({f}, dim={d}, keepdim=True)
torch.logsumexp({f}, {d})
torch.softmax({f}, {d})
F.log_softmax({f}, {d})
F.softmin({f}, {d})
F.normalize({f}, dim={d})
torch.cumsum({f}, {d})
torch.cumprod({f}, {d})
torch.cumsum({x}, {d})
{b}.any()
{b}.any({d})
{b}.all({d})
{b}.sum({d})
{i}.sum({d})
{i}.amax({d})
({f} > 0).sum({d})
torch.sort({f}, {d})[0]
torch.argsort({f}, {d})
torch.topk({f}, {p}, {d})[0]
torch.topk({f}, {p}, {d})[1]
torch.median({f}, {d})[0]
torch.kthvalue({f}, {p}, {d})[0]
torch.count_nonzero({f})
F.cosine_similarity({f}, {h}, dim={d})
F.mse_loss({f}, {h})
F.l1_loss({f}, {h}, reduction='none')
F.glu({f}, {d})
"""

_SHAPES = """
{x}.transpose({d}, {e})
{x}.movedim({d}, {e})
{x}.mT
{x}.unsqueeze({d})
{x}.squeeze()
{x}.squeeze({d})
{x}.flatten({d})
{x}.flatten()
{x}.reshape(-1)
{x}.reshape({n}, -1)
{x}.reshape(-1, {n})
{x}.view(-1, {n})
{x}.view({x}.shape)
{x}.unflatten({d}, ({p}, -1))
{x}.unflatten({d}, (-1, {p}))
{x}.select({d}, 0)
{x}.select({d}, -1)
{x}.narrow({d}, 0, {p})
{x}.narrow({d}, {k}, 1)
{x}[0]
{x}[:, 0]
{x}[..., -1]
{x}[..., None]
{x}[1:]
{x}[:-1]
{x}[:, ::2]
{x}[..., 1:]
{x}[..., :{k}]
{x}[..., {k}:]
{x}[..., :{n}]
{x}[..., : {n} // 2]
{x}[:, -{p}:]
{x}[:0]
{x}.chunk(2, {d})[0]
{x}.chunk(3, {d})[-1]
{x}.split({p}, {d})[0]
{x}.split({p}, {d})[-1]
{x}.unbind({d})[0]
{x}.unbind({d})[-1]
torch.tensor_split({x}, 3, {d})[1]
{x}.diagonal()
{x}.diagonal({k}, {d}, {e})
{x}.unfold({d}, {p}, {p})
{x}.expand({p}, *{x}.shape)
{x}.unsqueeze(0).expand({p}, *[-1] * {x}.ndim)
{x}.repeat({p}, *[1] * {x}.ndim)
{x}.repeat_interleave({p}, {d})
{x}.tile({p})
{x}.flip({d})
{x}.flip(({d}, {e}))
{x}.roll({k}, {d})
{x}.roll({n} // 2, {d})
{x}.roll({p})
torch.rot90({x2})
{x}.tril()
{x}.triu({k})
torch.cat([{x}, {x}], {d})
torch.cat([{f}, {h}], {d})
torch.cat([{f}[:, :1], {f}], 1)
torch.cat([{f}, {f}[..., :0]], -1)
torch.cat([{f}.new_zeros(0), {f}.reshape(-1)])
torch.stack([{x}, {x}], {d})
torch.stack([{f}, {h}, {f}], {d})
torch.stack([{f}, {h}], -1).flatten(-2)
torch.hstack([{f}, {h}])
torch.atleast_2d({x})
torch.broadcast_to({x}, ({p}, *{x}.shape))
F.pad({x}, (1, 0))
F.pad({f}, (1, 2), value={r})
F.pad({f}, (-1, 1))
F.pad({x}, (0, {k}))
F.pad({f3}, (1, 1), mode='reflect')
F.pad({f3}, (1, 2), mode='replicate')
F.pad({f3}, (1, 1), mode='circular')
F.pad({f4}, (1, 2, 1, 0), mode='reflect')
F.pad({f4}, (1, 2, 1, 0), mode='replicate')
F.pad({f4}, (1, 2, 1, 0), mode='circular')
F.pad({f4}, (0, {n} % 2, 0, {n} % 3))
torch.meshgrid({f1}, {f1}, indexing='ij')[1]
torch.outer({f1}, {f1})
{x}.swapaxes({d}, {e})
{x}.T
{f}.as_strided(({p}, 2), (1, 2))
"""

_INDEXED = """
{f}[{b}.long()]
{f}[{i} % {f}.shape[0]]
{f}[:, {i1} % {f}.shape[1]]
{f}[torch.arange({f}.shape[0]), 0]
{f}[..., torch.arange({f}.shape[-1] - 1, -1, -1)]
{f}.index_select({d}, torch.arange({n}) // 2)
{f}.index_select({d}, torch.zeros({p}, dtype=torch.long))
{f}.gather({d}, {f}.argsort({d}))
{f}.gather({d}, torch.zeros_like({f}, dtype=torch.long))
torch.take_along_dim({f}, {f}.argmax({d}, keepdim=True), {d})
{f}.scatter({d}, {f}.argsort({d}), {h})
{f}.scatter({d}, {f}.argmax({d}, keepdim=True), {r})
torch.zeros_like({f}).scatter_add({d}, {f}.argsort({d}), {h})
{f}.index_add({d}, torch.arange({n}) // 2, {h})
{f}.index_copy({d}, torch.arange({n} - 1, -1, -1), {h})
{f}.index_fill({d}, torch.zeros(1, dtype=torch.long), {r})
{f}.masked_select({m})
{f}.select_scatter({h}.select({d}, 0), {d}, 0)
{f}.slice_scatter({h}[:1], 0, 0, 1)
F.one_hot({i} % 5, 5)
torch.bucketize({f}, torch.tensor([-1.0, 0.0, 0.5]))
torch.searchsorted({f1}.sort()[0], {f})
torch.arange({n}, device={x}.device) + {f}
torch.arange({n}) * {r}
torch.arange({n}).float()
torch.arange({k} % 7)
torch.linspace(0, 1, {n})
torch.eye({n})
torch.ones({n}, {n}, dtype=torch.bool).tril()
torch.full(({n},), {r})
torch.tensor([1.0, 2.0, 3.0])
torch.triu_indices(3, 3)
torch.tensor({k}) + {f}
{f}.new_tensor({r})
"""

_PRODUCTS = """
{f} @ {h}.transpose(-1, -2)
{f} @ {f}.mT
{f} @ {f}.transpose(-1, -2) @ {f}
{f}.transpose(-1, -2) @ {h}
torch.matmul({f}, {f1})
torch.mm({f2}, {f2}.t())
torch.bmm({f3}, {f3}.transpose(1, 2))
torch.baddbmm({f3}, {f3}, {f3}.mT @ {f3})
torch.einsum('bij,bkj->bik', {f3}, {f3})
torch.einsum('bchw,bdhw->bcd', {f4}, {f4})
torch.einsum('...i,...i->...', {f}, {h})
torch.tensordot({f}, {h}, dims=([{d}], [{d}]))
torch.addmm({f2}, {f2} @ {f2}.t(), {f2})
torch.cdist({f}, {h})
F.scaled_dot_product_attention({f}, {f}, {f})
F.scaled_dot_product_attention({f}, {f}, {f}, is_causal=True)
F.scaled_dot_product_attention({f}, {h}, {h})
F.scaled_dot_product_attention({f3}, {h}, {f3}, scale=0.3)
F.linear({f}, {f2})
"""

_IMAGES = """
F.max_pool2d({f4}, 2)
F.max_pool2d({f4}, 3, 2, 1)
F.max_pool2d({f4}, 3, 2, 1, ceil_mode=True)
F.max_pool2d({f4}, 2, return_indices=True)[1]
F.avg_pool2d({f4}, 2)
F.avg_pool2d({f4}, 3, 2, 1, count_include_pad=False)
F.avg_pool2d({f4}, 3, 2, 1, ceil_mode=True)
F.adaptive_avg_pool2d({f4}, 1)
F.adaptive_avg_pool2d({f4}, (2, 3))
F.adaptive_max_pool2d({f4}, 2)
F.lp_pool2d({f4}, 2, 2)
F.max_pool1d({f3}, 2)
F.avg_pool1d({f3}, 3, 1, 1)
F.adaptive_avg_pool1d({f3}, 2)
F.adaptive_max_pool1d({f3}, 1)
F.interpolate({f4}, scale_factor=2)
F.interpolate({f4}, scale_factor=2.0, mode='bilinear')
F.interpolate({f4}, scale_factor=0.5, mode='bilinear', align_corners=True)
F.interpolate({f4}, size=(5, 7))
F.interpolate({f4}, size=(5, 7), mode='bicubic')
F.interpolate({f4}, size={x4}.shape[2:], mode='bilinear')
F.interpolate({f4}, scale_factor=1.5, mode='nearest-exact')
F.interpolate({f4}, scale_factor=0.5, mode='area')
F.interpolate({f3}, scale_factor=2, mode='linear')
F.interpolate({f3}, scale_factor=3)
F.pixel_shuffle({f4}, 2)
F.pixel_unshuffle({f4}, 2)
F.channel_shuffle({f4}, 2)
F.unfold({f4}, 3, padding=1)
F.unfold({f4}, 2, stride=2)
F.fold(F.unfold({f4}, 2, stride=2), {f4}.shape[2:], 2, stride=2)
F.grid_sample({f4}, F.affine_grid(torch.eye(2, 3).expand({f4}.shape[0], 2, 3), {f4}.shape))
F.local_response_norm({f4}, 3)
F.dropout({f}, 0.5, False)
F.layer_norm({f}, {f}.shape[-1:])
F.rms_norm({f}, {f}.shape[-1:])
F.instance_norm({f3})
F.instance_norm({f4})
F.group_norm({f4}, 2)
F.group_norm({f3}, 1)
F.batch_norm({f4}, None, None, training=True)
"""

#: Lines that write into what is there: inputs, buffers, results, and views of them.
_WRITES = """
{f}.add_({g})
{f}.mul_({r})
{f}.copy_({g})
{f}.copy_({h})
{f}.zero_()
{f}.fill_({r})
{f}.relu_()
{f}.clamp_(-1, 1)
{f}[..., 0] = {r}
{f}[:, :1] = 0
{f}[0].mul_(2)
{f}.select({d}, -1).add_(1)
{f}.masked_fill_({m}, {r})
{f}[{f} > 0.5] = 0
{f}.transpose(0, -1).mul_(0.5)
{f}.view(-1)[:2] = {r}
{f}.index_copy_({d}, torch.zeros(1, dtype=torch.long), {f}.narrow({d}, -1, 1).clone())
{f}.index_add_({d}, torch.zeros(1, dtype=torch.long), {f}.narrow({d}, -1, 1).clone())
{f}.index_fill_({d}, torch.zeros(1, dtype=torch.long), {r})
{f}.scatter_({d}, {f}.argmax({d}, keepdim=True), 0.0)
{f}.sub_({f}.mean())
{i}.add_({k})
{b}.logical_not_()
torch.add({f}, {h}, out={f})
torch.ops.fuzz.add_rows_({f}, {h})
"""

_OUTSIDE = """
torch.ops.fuzz.row_sums({f})
torch.ops.fuzz.row_sums({f}.contiguous())
torch.ops.fuzz.row_sums({f}.transpose({d}, {e}).contiguous())
torch.ops.fuzz.halves({f}, {r})[0]
torch.ops.fuzz.halves({f}, 0.5)[1]
torch.ops.fuzz.grow({f}, {p})
torch.ops.fuzz.grow({f}, {n})
torch.special.bessel_j0({f})
torch.fft.rfft({f}).abs()
torch.linalg.pinv({f2})
torch.nonzero({f} > 0)
{f}.unique().numel() + {f}
"""


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


TEMPLATES = [
    *_lines(_ELEMENTWISE),
    *_lines(_REDUCTIONS),
    *_lines(_SHAPES),
    *_lines(_INDEXED),
    *_lines(_PRODUCTS),
    *_lines(_IMAGES),
    *_lines(_OUTSIDE),
]
WRITES = _lines(_WRITES)

_PLACE = re.compile(r"\{([a-z])(\d?)\}")

_TYPES: dict[str, Callable[[Tensor], bool]] = {
    "x": lambda value: True,
    "f": torch.is_floating_point,
    "g": torch.is_floating_point,
    "h": torch.is_floating_point,
    "i": lambda value: value.dtype in (torch.int64, torch.int32),
    "b": lambda value: value.dtype is torch.bool,
    "m": lambda value: value.dtype is torch.bool,
}


def fill(writer: Writer, template: str) -> str:
    """Put values in the places of a template.

    Raises:
        Unfit: no value fits.
    """
    chosen: dict[str, str] = {}

    def place(match: re.Match[str]) -> str:
        letter, rank = match.groups()
        key = letter + rank
        if key not in chosen:
            chosen[key] = _choose(writer, chosen, letter, int(rank) if rank else None)
        return chosen[key]

    return _PLACE.sub(place, template)


def _choose(writer: Writer, chosen: dict[str, str], letter: str, rank: int | None) -> str:
    choices = writer.choices
    tensors = [chosen[key] for key in chosen if key[0] in _TYPES]
    if letter in _TYPES:
        return _tensor(writer, tensors[0] if tensors else None, letter, rank)
    if letter in "den":
        if not tensors:
            tensors = [chosen.setdefault("x", _tensor(writer, None, "x", None))]
        rank = writer.first(tensors[0]).ndim
        if letter == "n":
            axis = int(chosen.get("d", "-1"))
            return writer.size(tensors[0], axis if -rank <= axis < rank else -1)
        if not rank:
            raise Unfit("no axis")
        return str(choices.below(rank) if choices.chance(2) else -1 - choices.below(rank))
    if letter == "p":
        return str(choices.one_of(2, 1, 3, 4))
    if letter == "k":
        return _number(writer, int) or str(choices.one_of(1, 2, 0, -1, 3, -2))
    if letter == "r":
        return _number(writer, float) or str(choices.one_of(0.5, 0.0, 2.0, -1.5, 1.0))
    if letter == "t":
        return _number(writer, bool) or str(choices.one_of(False, True))
    raise ValueError(f"no place is called {letter}")


def _number(writer: Writer, kind: type) -> str | None:
    """Return an argument of forward's that is a number, where there is one."""
    found = writer.fitting(lambda value: type(value) is kind)
    return writer.choices.one_of(*found) if found and not writer.choices.chance(4) else None


def _tensor(writer: Writer, first: str | None, letter: str, rank: int | None) -> str:
    fits = _TYPES[letter]

    def fit(value: object) -> bool:
        return isinstance(value, Tensor) and fits(value) and rank in (None, value.ndim)

    if letter not in "ghm" or first is None:
        return writer.pick(fit)
    alike = writer.tensors(first)
    found = [
        name
        for name in writer.fitting(fit)
        if all(map(_goes_with(letter), alike, writer.tensors(name)))
    ]
    if not found and letter == "m":
        return f"({first} > 0.3)"
    if not found:
        raise Unfit("no value fits beside the first")
    return found[writer.choices.below(len(found))]


def _goes_with(letter: str) -> Callable[[Tensor, Tensor], bool]:
    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape

    def broadcasts(a: Tensor, b: Tensor) -> bool:
        try:
            return torch.broadcast_shapes(a.shape, b.shape) == a.shape
        except RuntimeError:
            return False

    return same if letter == "h" else broadcasts


def step_of(template: str) -> Callable[[Writer], None]:
    """Return the step that writes one line by a template."""

    def step(writer: Writer) -> None:
        writer.line(fill(writer, template))

    return step


def write_of(template: str) -> Callable[[Writer], None]:
    """Return the step that writes one line for what it changes."""

    def step(writer: Writer) -> None:
        writer.statement(fill(writer, template))

    return step
