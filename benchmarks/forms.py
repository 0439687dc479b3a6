"""Which way of writing attention does the builder reward? Builds each form and counts its kernels.

    python benchmarks/forms.py > docs/forms.md

Two attention blocks in a row (projections, 12 heads of 64, output projection, residual add), FP16,
batch 1, 128 tokens, built for SM89. No GPU is needed. The lowering of attention and the passes on
its biases follow this table.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from singlecard.engine.plan_report import PlanReport, read_plan_log
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

LENGTH, HEADS, WIDTH = 128, 12, 64
TYPE = torch.float16


@dataclass(frozen=True)
class Form:
    """One way to write a block: the attention itself, its mask, and its projections' biases."""

    name: str
    layer: bool = False
    mask: str = ""
    key_heads: int = HEADS
    bias: str = "none"
    cap: bool = False


FORMS = (
    Form("attention layer", layer=True),
    Form("written out"),
    Form("attention layer, additive mask", layer=True, mask="add"),
    Form("written out, additive mask", mask="add"),
    Form("attention layer, boolean mask turned additive", layer=True, mask="select"),
    Form("written out, boolean mask turned additive", mask="select"),
    Form("written out, boolean mask selects scores", mask="where"),
    Form("attention layer, causal", layer=True, mask="causal"),
    Form("written out, constant causal mask selects scores", mask="causal"),
    Form("written out, constant sliding window selects scores", mask="window"),
    Form("written out, ALiBi as a constant added to causal scores", mask="alibi"),
    Form("written out, scores soft-capped, causal", mask="causal", cap=True),
    Form("attention layer, 4 key heads", layer=True, key_heads=4),
    Form("written out, 4 key heads repeated by broadcast", key_heads=4),
    Form("written out, biases on q, k, v", bias="all"),
    Form("written out, bias on q only", bias="query"),
    Form("written out, bias on q behind the heads", bias="behind"),
)


class Block:
    """Builds the blocks of one form."""

    def __init__(self, form: Form) -> None:
        self.form, self.net = form, Net()
        self.random = torch.Generator().manual_seed(0)

    def weight(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self.random) * 0.02
        return self.net.constant(values.to(TYPE))

    def project(self, x: Tensor, width: int, bias: bool) -> Tensor:
        product = self.net.matmul(x, self.weight(width, HEADS * WIDTH), transpose_b=True)
        return self.net.sum(product, self.weight(width)) if bias else product

    def split(self, x: Tensor, heads: int) -> Tensor:
        shaped = self.net.reshape(x, (1, LENGTH, heads, WIDTH))
        return self.net.permute(shaped, (0, 2, 1, 3))

    def report(self) -> PlanReport:
        net = self.net
        x = net.input("x", TYPE, (1, LENGTH, HEADS * WIDTH))
        mask = self.mask()
        for _ in range(2):
            x = net.sum(x, self.project(self.attend(x, mask), HEADS * WIDTH, False))
        net.mark_output(x, "y")
        file = io.BytesIO()
        messages = build_plan(net, {}, BuildSettings(targets=("sm89",)), file)
        return read_plan_log(messages, len(file.getvalue()))

    def mask(self) -> Tensor | None:
        net, kind = self.net, self.form.mask
        if kind == "add":
            return net.input("mask", TYPE, (1, 1, 1, LENGTH))
        if kind in ("select", "where"):
            return net.input("mask", torch.bool, (1, 1, 1, LENGTH))
        if kind == "causal" and not self.form.layer:
            return net.constant(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril())
        places = torch.arange(LENGTH)
        back = places[:, None] - places
        if kind == "window":
            return net.constant(((back >= 0) & (back < LENGTH // 4))[None, None])
        if kind == "alibi":
            slopes = torch.logspace(-1, -8, HEADS, base=2.0).reshape(1, HEADS, 1, 1)
            return net.constant((-back * slopes).masked_fill(back < 0, -65504.0).to(TYPE))
        return None

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        net, form = self.net, self.form
        q = self.project(x, HEADS * WIDTH, form.bias in ("all", "query"))
        k, v = (self.project(x, form.key_heads * WIDTH, form.bias == "all") for _ in range(2))
        q, k, v = self.split(q, HEADS), self.split(k, form.key_heads), self.split(v, form.key_heads)
        if form.bias == "behind":
            q = net.sum(q, self.weight(1, HEADS, 1, WIDTH))
        q = net.times(q, 1 / math.sqrt(WIDTH))
        if form.mask == "select" and mask is not None:
            mask = net.where(mask, net.scalar(0.0, TYPE, 4), net.scalar(-65504.0, TYPE, 4))
        if form.layer:
            kind = "UPPER_LEFT" if form.mask == "causal" else "NONE"
            out = net.attention(q, k, v, mask, kind, decomposable=False)
        else:
            out = self.written_out(q, self.repeat(k), self.repeat(v), mask)
        return net.reshape(net.permute(out, (0, 2, 1, 3)), (1, LENGTH, HEADS * WIDTH))

    def repeat(self, x: Tensor) -> Tensor:
        heads = self.form.key_heads
        if heads == HEADS:
            return x
        grouped = self.net.reshape(x, (1, heads, 1, LENGTH, WIDTH))
        wide = self.net.expand(grouped, (1, heads, HEADS // heads, LENGTH, WIDTH))
        return self.net.reshape(wide, (1, HEADS, LENGTH, WIDTH))

    def written_out(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        net = self.net
        scores = net.matmul(q, k, transpose_b=True)
        if self.form.cap:
            scores = net.times(net.activation("TANH", net.times(scores, 1 / 50)), 50.0)
        if mask is not None and mask.dtype == torch.bool:
            scores = net.where(mask, scores, net.scalar(-65504.0, TYPE, 4))
        elif mask is not None:
            scores = net.sum(scores, mask)
        return net.matmul(net.softmax(scores, -1), v)


def rows(report: Callable[[Form], PlanReport]) -> Iterator[str]:
    """Yield the table's lines."""
    yield "| form | kernels | MB moved |"
    yield "| --- | ---: | ---: |"
    for form in FORMS:
        plan = report(form)
        yield f"| {form.name} | {plan.kernel_count} | {(plan.bytes_moved or 0) / 1e6:.2f} |"


if __name__ == "__main__":
    print("# Forms of attention\n")
    print(f"Written by `python benchmarks/forms.py`, {flavour_name()} {flavour_version()}.\n")
    print("\n".join((__doc__ or "").split("\n\n")[2:]).strip() + "\n")
    print("\n".join(rows(lambda form: Block(form).report())))
