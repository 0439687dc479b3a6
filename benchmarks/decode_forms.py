"""Which way of writing a decoder's step does the builder reward? Builds each and counts kernels.

    python benchmarks/decode_forms.py > docs/decoding.md

Layers of a Llama-style decoder: 1,024 wide, 16 query heads and 4 key heads of 64, feed-forward
2,048, a cache of 256 places, FP16, batch 1, built for SM89. Figures are for one layer more: those
of three layers less those of two. No GPU is needed. The passes on decoders follow this table.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import torch

from singlecard.engine.plan_report import PlanReport, read_plan_log
from singlecard.network.building import BuildSettings, build_plan
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

WIDE, HEADS, KEY_HEADS, HEAD, PLACES, HIDDEN = 1024, 16, 4, 64, 256, 2048
TYPE = torch.float16


@dataclass(frozen=True)
class Form:
    """One way to write a step; ``guard`` gives zero to a query that sees no key."""

    name: str
    rotary: str = "apart"
    cache: str = "layer"
    attention: str = "layer"
    guard: bool = False
    length: int = 1


FORMS = (
    Form(
        "cache by scatter, heads repeated, attention written out",
        cache="scatter",
        attention="repeat",
    ),
    Form("cache by scatter, attention layer", cache="scatter"),
    Form("cache update layer, heads repeated, attention written out", attention="repeat"),
    Form("cache update layer, heads grouped by a view, attention written out", attention="group"),
    Form("cache update layer, attention layer"),
    Form("the same, rotary layer", rotary="layer"),
    Form("the same, queries and keys turned together", rotary="together"),
    Form("the same, rows that see nothing guarded", rotary="together", guard=True),
    Form("64 new words: attention layer", rotary="together", length=64),
    Form(
        "64 new words: heads repeated, attention written out",
        rotary="together",
        attention="repeat",
        length=64,
    ),
)


class Step:
    """Builds some layers of one form."""

    def __init__(self, form: Form) -> None:
        self.form, self.net = form, Net()
        self.random = torch.Generator().manual_seed(0)

    def project(self, x: Tensor, width: int) -> Tensor:
        values = torch.randn(width, x.shape[-1], generator=self.random) * 0.02
        return self.net.matmul(x, self.net.constant(values.to(TYPE)), transpose_b=True)

    def norm(self, x: Tensor) -> Tensor:
        net, wide = self.net, self.net.cast(x, torch.float32)
        mean = net.reduce("AVG", net.prod(wide, wide), [2], True)
        root = net.unary("SQRT", net.sum(mean, net.scalar(1e-6, torch.float32, 3)))
        return net.cast(net.prod(wide, net.unary("RECIP", root)), TYPE)

    def split(self, x: Tensor, heads: int) -> Tensor:
        shaped = self.net.reshape(x, (1, self.form.length, heads, HEAD))
        return self.net.permute(shaped, (0, 2, 1, 3))

    def turned(self, x: Tensor) -> Tensor:
        net = self.net
        if self.form.rotary == "layer":
            angles = [net.reshape(item, (1, self.form.length, HEAD // 2)) for item in self.half]
            handles = [item.handle for item in angles]
            return net.output_of(net.add("rotary_embedding", x.handle, *handles, False, 0))
        first, second = (net.narrow(x, 3, start, HEAD // 2) for start in (0, HEAD // 2))
        across = net.concat([net.negate(second), first], 3)
        return net.sum(net.prod(x, self.whole[0]), net.prod(across, self.whole[1]))

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.form.rotary != "together":
            return self.turned(q), self.turned(k)
        both = self.turned(self.net.concat([q, k], 1))
        return self.net.narrow(both, 1, 0, HEADS), self.net.narrow(both, 1, HEADS, KEY_HEADS)

    def written(self, name: str, new: Tensor, place: Tensor) -> Tensor:
        net = self.net
        cache = net.input(name, TYPE, (1, KEY_HEADS, PLACES, HEAD))
        if self.form.cache == "layer":
            result = net.update_cache(cache, new, net.cast(place, torch.int32))
        else:
            steps = net.constant(torch.arange(self.form.length))
            index = net.reshape(net.sum(place, steps), (1, 1, self.form.length, 1))
            result = net.scatter(cache, net.expand(index, new.shape), new, "ELEMENT", 2)
        net.mark_output(result, f"{name}_new")
        return result

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        net, length = self.net, self.form.length
        q = net.times(q, 1 / math.sqrt(HEAD))
        if self.form.attention == "layer":
            attended = net.attention(q, k, v, self.mask, "NONE", False)
        else:
            group = HEADS // KEY_HEADS
            if self.form.attention == "repeat":
                spread = (1, KEY_HEADS, group, PLACES, HEAD)
                k, v = (
                    net.reshape(net.expand(net.unsqueeze(x, 2), spread), (1, HEADS, PLACES, HEAD))
                    for x in (k, v)
                )
            else:  # with one query for each head, the queries of a group are rows of a matrix
                q = net.reshape(q, (1, KEY_HEADS, group, HEAD))
            scores = net.sum(net.matmul(q, k, transpose_b=True), self.mask)
            attended = net.reshape(net.matmul(net.softmax(scores, 3), v), (1, HEADS, length, HEAD))
        if self.form.guard:
            attended = net.where(self.seen, attended, net.scalar(0.0, TYPE, 4))
        return net.reshape(net.permute(attended, (0, 2, 1, 3)), (1, length, HEADS * HEAD))

    def layer(self, x: Tensor, at: int) -> Tensor:
        net = self.net
        place = net.input(f"place_{at}", torch.int64, (1,))
        count = net.constant(torch.tensor([self.form.length]))
        net.mark_output(net.sum(place, count), f"place_{at}_new")
        normal = self.norm(x)
        heads = (HEADS, KEY_HEADS, KEY_HEADS)
        q, k, v = (self.split(self.project(normal, n * HEAD), n) for n in heads)
        q, k = self.rotate(q, k)
        k, v = self.written(f"keys_{at}", k, place), self.written(f"values_{at}", v, place)
        x = net.sum(x, self.project(self.attend(q, k, v), WIDE))
        normal = self.norm(x)
        gate, up = self.project(normal, HIDDEN), self.project(normal, HIDDEN)
        gated = net.prod(net.prod(gate, net.activation("SIGMOID", gate)), up)
        return net.sum(x, self.project(gated, WIDE))

    def report(self, layers: int) -> PlanReport:
        net, length = self.net, self.form.length
        x = net.input("x", TYPE, (1, length, WIDE))
        place = net.input("place", torch.int64, (1,))
        places = net.reshape(net.sum(place, net.constant(torch.arange(length))), (1, 1, length, 1))
        speeds = net.constant(torch.linspace(1, 0, HEAD // 2).reshape(1, 1, 1, -1))
        angles = net.prod(net.cast(places, torch.float32), speeds)
        self.half = [net.cast(net.unary(kind, angles), TYPE) for kind in ("COS", "SIN")]
        self.whole = [net.concat([item, item], 3) for item in self.half]
        keys = net.constant(torch.arange(PLACES).reshape(1, 1, 1, -1))
        visible = net.binary(
            "LESS", keys, net.sum(places, net.constant(torch.ones(1, 1, 1, 1).long()))
        )
        self.mask = net.where(visible, net.scalar(0.0, TYPE, 4), net.scalar(-65504.0, TYPE, 4))
        self.seen = net.cast(
            net.reduce("MAX", net.cast(visible, torch.int32), [3], True), torch.bool
        )
        for at in range(layers):
            x = self.layer(x, at)
        net.mark_output(x, "y")
        file = io.BytesIO()
        messages = build_plan(net, {}, BuildSettings(("sm89",)), file)
        return read_plan_log(messages, engine_bytes=len(file.getvalue()))


def main() -> None:
    body = (__doc__ or "").strip().splitlines()
    print("# Forms of a decoder's step\n")
    print(
        f"Written by `python benchmarks/decode_forms.py`, {flavour_name()} {flavour_version()}.\n"
    )
    print("\n".join(body[4:]) + "\n")
    print("| form | kernels a layer | MB moved a layer |\n| --- | ---: | ---: |")
    for form in FORMS:
        two, three = Step(form).report(2), Step(form).report(3)
        kernels = three.kernel_count - two.kernel_count
        moved = (three.bytes_moved - two.bytes_moved) / 1e6
        print(f"| {form.name} | {kernels} | {moved:.2f} |")


if __name__ == "__main__":
    main()
