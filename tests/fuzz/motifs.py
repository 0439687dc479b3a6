"""Steps of several lines: what models are made of, in the spellings that are met."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tests.fuzz.writer import Unfit, Writer

Motif = Callable[[Writer], None]


def _is_single(value: Tensor) -> bool:
    """Tell whether layers of single precision take a tensor."""
    return str(value.dtype) == "torch.float32"


def _rows(w: Writer, ndim: int | None = None) -> tuple[str, int]:
    """Choose floats whose last axis is known, (..., channels)."""
    x = w.floats(lambda v: _is_single(v) and v.ndim >= 2 and ndim in (None, v.ndim))
    return x, w.known(x, -1)


def _channels(w: Writer, ndim: int | None = None) -> tuple[str, int]:
    """Choose floats whose second axis is known, (batch, channels, ...)."""
    x = w.floats(lambda v: _is_single(v) and v.ndim >= 3 and ndim in (None, v.ndim))
    return x, w.known(x, 1)


def _reused(w: Writer, kind: str, new: str, fits: str) -> str:
    """Return a new part, or one that is there and says the same of itself."""
    alike = [part for part in w.parts_of(kind) if fits in repr(w.first(part))]
    return alike[0] if alike and w.choices.chance(3) else w.part(new)


# Linear layers and tied weights.


def linear(w: Writer) -> None:
    x, width = _rows(w)
    out = w.choices.one_of(width, 8, 4, 16, 12)
    bias = not w.choices.chance(3)
    part = _reused(w, "Linear", f"nn.Linear({width}, {out}, bias={bias})", f"in_features={width}")
    w.line(f"{part}({x})")


def two_linears_of_one(w: Writer) -> None:
    x, width = _rows(w)
    a, b = w.part(f"nn.Linear({width}, {width})"), w.part(f"nn.Linear({width}, {width})")
    order = w.choices.one_of((a, b), (a, a), (b, a))
    joined = w.choices.one_of("{} + {}", "{} * {}", "torch.cat([{}, {}], -1)", "{} - F.silu({})")
    w.line(joined.format(*(f"{part}({x})" for part in order)))


def gated(w: Writer) -> None:
    x, width = _rows(w)
    hidden = w.choices.one_of(8, 16, 24)
    act = w.choices.one_of("F.silu", "F.gelu", "torch.sigmoid", "F.relu")
    if w.choices.chance(2):
        gate, up = (w.part(f"nn.Linear({width}, {hidden}, bias=False)") for _ in range(2))
        inner = w.line(f"{act}({gate}({x})) * {up}({x})")
    else:
        both = w.part(f"nn.Linear({width}, {2 * hidden})")
        w.line(f"{both}({x}).chunk(2, dim=-1)", 2)
        inner = w.line(f"{act}({w.values[-2]}) * {w.values[-1]}")
    down = w.part(f"nn.Linear({hidden}, {width})")
    w.line(f"{x} + {down}({inner})")


def tied_head(w: Writer) -> None:
    ids = w.pick(lambda v: isinstance(v, Tensor) and str(v.dtype) == "torch.int64" and v.ndim >= 1)
    width = w.choices.one_of(8, 16)
    table = w.part(f"nn.Embedding(11, {width})")
    x = w.line(f"{table}({ids} % 11)")
    if w.choices.chance(2):
        norm = w.part(f"nn.LayerNorm({width})")
        x = w.line(f"{norm}({x})")
    w.line(f"F.linear({x}, {table}.weight)")


def embedding(w: Writer) -> None:
    ids = w.pick(lambda v: isinstance(v, Tensor) and str(v.dtype) in ("torch.int64", "torch.int32"))
    table = w.part(w.choices.one_of("nn.Embedding(11, 8)", "nn.Embedding(11, 8, padding_idx=0)"))
    w.line(f"{table}({ids} % 11)")


def bilinear(w: Writer) -> None:
    x, width = _rows(w)
    part = w.part(f"nn.Bilinear({width}, {width}, 4)")
    w.line(f"{part}({x}, {x})")


def own_parameter(w: Writer) -> None:
    x, width = _rows(w)
    weight = w.part(f"nn.Parameter(torch.randn({width}, {width}))")
    form = w.choices.one_of(
        "{x} @ {w}", "{x} @ {w}.t()", "F.linear({x}, {w}.t())", "{x} @ ({w} + {w}.t())",
        "torch.einsum('...i,ij->...j', {x}, {w})", "{x} * {w}[0] + {w}[1]",
        "{x} @ F.normalize({w})",
        "F.linear({x}, {w}.view({n}, -1), {w}[0])", "F.linear({x}, {w}[: {n} // 2])",
    )  # fmt: skip
    w.line(form.format(x=x, w=weight, n=width))


# Attention.


def _heads(w: Writer, width: int) -> int:
    options = [heads for heads in (2, 4, 1, 3) if width % heads == 0]
    return int(w.choices.one_of(*options))


def _split_heads(w: Writer, x: str, heads: int) -> str:
    form = w.choices.one_of(
        "{x}.view({x}.shape[0], -1, {h}, {x}.shape[-1] // {h}).transpose(1, 2)",
        "{x}.reshape({x}.shape[0], {x}.shape[1], {h}, -1).transpose(1, 2)",
        "{x}.unflatten(-1, ({h}, -1)).transpose(1, 2)",
        "{x}.view({x}.shape[0], {x}.shape[1], {h}, -1).permute(0, 2, 1, 3)",
    )
    return w.line(form.format(x=x, h=heads))


def _merge_heads(w: Writer, x: str) -> str:
    form = w.choices.one_of(
        "{x}.transpose(1, 2).flatten(2)",
        "{x}.transpose(1, 2).reshape({x}.shape[0], {x}.shape[2], -1)",
        "{x}.permute(0, 2, 1, 3).contiguous().view({x}.shape[0], {x}.shape[2], -1)",
    )
    return w.line(form.format(x=x))


def _mask(w: Writer, q: str, k: str) -> str:
    """Return the text of a mask for scores of (batch, heads, queries, keys)."""
    lengths = f"{q}.shape[-2], {k}.shape[-2]"
    forms = [
        "torch.ones({n}, dtype=torch.bool).tril()",
        "torch.full(({n}), float('-inf')).triu(1)",
        "(torch.zeros({n}) - 0.5)",
        "torch.zeros({n}).masked_fill(torch.arange({k}.shape[-2]) > 1, -1e4)",
        "torch.zeros({n}, dtype=torch.bool)",
        "torch.full(({n}), float('-inf'))",
        "(torch.arange({q}.shape[-2])[:, None] - torch.arange({k}.shape[-2])).abs() * -0.5",
    ]
    own = w.fitting(
        lambda v: isinstance(v, Tensor) and str(v.dtype) == "torch.bool" and v.ndim == 2
    )
    fitting = [
        name
        for name in own
        if all(
            a.shape == (b.shape[0], b.shape[-2])
            for a, b in zip(w.tensors(name), w.tensors(k), strict=True)
        )
    ]
    for name in fitting[:1]:
        forms[:0] = [
            f"{name}[:, None, None, :]",
            f"torch.zeros({name}.shape).masked_fill(~{name}, float('-inf'))[:, None, None, :]",
            f"((1.0 - {name}.float()) * -1e4)[:, None, None]",
            f"{name}[:, None, None, :] & torch.ones({{n}}, dtype=torch.bool).tril()",
        ]
    return str(w.choices.one_of(*forms)).format(n=lengths, q=q, k=k)


def _scores(w: Writer, q: str, k: str, v: str) -> str:
    """Write attention of heads, (batch, heads, length, width)."""
    spelling = w.choices.below(7)
    if spelling == 0:
        return w.line(f"F.scaled_dot_product_attention({q}, {k}, {v})")
    if spelling == 1:
        return w.line(f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal=True)")
    if spelling == 2:
        return w.line(f"F.scaled_dot_product_attention({q}, {k}, {v}, attn_mask={_mask(w, q, k)})")
    if spelling == 3:
        scale = w.choices.one_of("0.25", f"{q}.shape[-1] ** -0.5", "1.0")
        return w.line(f"F.scaled_dot_product_attention({q}, {k}, {v}, scale={scale})")
    scaled = w.choices.one_of(
        f"({q} @ {k}.transpose(-2, -1)) * {q}.shape[-1] ** -0.5",
        f"torch.matmul({q}, {k}.mT) / {q}.shape[-1] ** 0.5",
        f"({q} * 0.25) @ {k}.transpose(-1, -2)",
        f"torch.einsum('bhid,bhjd->bhij', {q}, {k})",
    )
    scores = w.line(scaled)
    if spelling == 5:
        mask = _mask(w, q, k)
        scores = w.line(
            w.choices.one_of(
                f"{scores} + ({mask})" if "bool" not in mask and "&" not in mask else scores,
                f"{scores}.masked_fill(torch.ones({q}.shape[-2], {k}.shape[-2])"
                ".triu(1).bool(), float('-inf'))",
                f"torch.where(torch.ones({q}.shape[-2], {k}.shape[-2]).tril() > 0, {scores}, -1e9)",
            )
        )
    if spelling == 6:
        scores = w.line(f"5.0 * torch.tanh({scores} / 5.0)")
    softmax = w.line(
        w.choices.one_of(
            f"torch.softmax({scores}, -1)",
            f"F.softmax({scores}, dim=-1, dtype=torch.float32)",
            f"F.dropout({scores}.softmax(-1), 0.1, self.training)",
        )
    )
    return w.line(w.choices.one_of(f"{softmax} @ {v}", f"torch.matmul({softmax}, {v})"))


def attention(w: Writer) -> None:
    """Self-attention whose three projections may be one, two or three."""
    x, width = _rows(w, 3)
    heads = _heads(w, width)
    bias = not w.choices.chance(3)
    sharing = w.choices.below(6)
    layer = f"nn.Linear({width}, {width}, bias={bias})"
    if sharing == 0:
        q, k, v = (_split_heads(w, w.line(f"{w.part(layer)}({x})"), heads) for _ in range(3))
    elif sharing == 1:  # one product for all three
        packed = w.part(f"nn.Linear({width}, {3 * width}, bias={bias})")
        each = width // heads
        qkv = w.line(f"{packed}({x})")
        form = w.choices.below(3)
        if form == 0:
            w.line(f"{qkv}.chunk(3, dim=-1)", 3)
            q, k, v = (_split_heads(w, name, heads) for name in w.values[-3:])
        elif form == 1:
            shape = f"{x}.shape[0], {x}.shape[1], 3, {heads}, {each}"
            w.line(f"{qkv}.view({shape}).permute(2, 0, 3, 1, 4).unbind(0)", 3)
            q, k, v = w.values[-3:]
        else:
            w.line(f"{qkv}.split({width}, dim=2)", 3)
            q, k, v = (_split_heads(w, name, heads) for name in w.values[-3:])
    elif sharing == 2:  # keys are values
        a, b = (w.line(f"{w.part(layer)}({x})") for _ in range(2))
        q, k = _split_heads(w, a, heads), _split_heads(w, b, heads)
        v = k
    elif sharing == 3:  # queries are keys
        a, b = (w.line(f"{w.part(layer)}({x})") for _ in range(2))
        q, v = _split_heads(w, a, heads), _split_heads(w, b, heads)
        k = q
    elif sharing == 4:  # all one
        q = k = v = _split_heads(w, w.line(f"{w.part(layer)}({x})"), heads)
    else:  # one layer, called three times
        part = w.part(layer)
        q, k, v = (_split_heads(w, w.line(f"{part}({x})"), heads) for _ in range(3))
    merged = _merge_heads(w, _scores(w, q, k, v))
    if not w.choices.chance(3):
        merged = w.line(f"{w.part(layer)}({merged})")
    if w.choices.chance(2):
        w.line(f"{x} + {merged}")


def cross_attention(w: Writer) -> None:
    x, width = _rows(w, 3)
    y = w.pick(
        lambda v: isinstance(v, Tensor) and v.ndim == 3 and _is_single(v) and v.shape[-1] == width
    )
    heads = _heads(w, width)
    layer = f"nn.Linear({width}, {width})"
    q, k, v = (_split_heads(w, w.line(f"{w.part(layer)}({name})"), heads) for name in (x, y, y))
    merged = _merge_heads(w, _scores(w, q, k, v))
    w.line(f"{w.part(layer)}({merged})")


def grouped_queries(w: Writer) -> None:
    """Fewer heads of keys and values than of queries, repeated, expanded, or left to PyTorch."""
    x, width = _rows(w, 3)
    each, (heads, groups) = 4, w.choices.one_of((4, 2), (4, 1), (2, 1), (6, 3))
    q, k, v = (
        w.line(
            f"{w.part(f'nn.Linear({width}, {count * each}, bias={bias})')}({x})"
            f".view({x}.shape[0], {x}.shape[1], {count}, {each}).transpose(1, 2)"
        )
        for count, bias in ((heads, True), (groups, w.choices.chance(2)), (groups, False))
    )
    causal = w.choices.one_of("", ", is_causal=True")
    spelling = w.choices.below(3)
    if spelling == 0:
        out = w.line(f"F.scaled_dot_product_attention({q}, {k}, {v}, enable_gqa=True{causal})")
    else:
        ratio = heads // groups
        repeated = (
            "{x}.repeat_interleave({r}, dim=1)",
            "{x}[:, :, None].expand({x}.shape[0], {g}, {r}, {x}.shape[2], {e}).reshape("
            "{x}.shape[0], {h}, {x}.shape[2], {e})",
        )[spelling - 1]
        k, v = (
            w.line(repeated.format(x=name, r=ratio, g=groups, h=heads, e=each)) for name in (k, v)
        )
        out = w.line(f"F.scaled_dot_product_attention({q}, {k}, {v}{causal})")
    merged = _merge_heads(w, out)
    part = w.part(f"nn.Linear({heads * each}, {width}, bias=False)")
    w.line(f"{part}({merged})")


def multihead(w: Writer) -> None:
    x, width = _rows(w, 3)
    heads = _heads(w, width)
    extra = w.choices.one_of("", ", bias=False", ", add_bias_kv=True", ", add_zero_attn=True")
    part = w.part(f"nn.MultiheadAttention({width}, {heads}, batch_first=True{extra})")
    call = w.choices.one_of(
        "", ", need_weights=False", ", average_attn_weights=False",
        f", attn_mask=torch.full(({x}.shape[1], {x}.shape[1]), float('-inf')).triu(1)",
        f", key_padding_mask=(torch.arange({x}.shape[1]) > 1).expand({x}.shape[0], -1)",
        f", is_causal=True, need_weights=False, attn_mask=torch.ones({x}.shape[1], {x}.shape[1])"
        ".triu(1).bool()",
    )  # fmt: skip
    w.line(f"{part}({x}, {x}, {x}{call})[0]")
    if w.choices.chance(4):
        w.line(f"{part}({x}, {x}, {x})[1]")


def encoder_layer(w: Writer) -> None:
    x, width = _rows(w, 3)
    heads = _heads(w, width)
    extra = w.choices.one_of("", ", norm_first=True", ", activation='gelu'", ", bias=False")
    layer = f"nn.TransformerEncoderLayer({width}, {heads}, 16, batch_first=True{extra})"
    call = w.choices.one_of(
        "", f", src_key_padding_mask=(torch.arange({x}.shape[1]) > 1).expand({x}.shape[0], -1)",
        f", src_mask=nn.Transformer.generate_square_subsequent_mask({x}.shape[1])",
    )  # fmt: skip
    if w.choices.chance(4):
        layer = f"nn.TransformerEncoder({layer}, 2, enable_nested_tensor=False)"
        call = call.replace("src_mask", "mask")
    w.line(f"{w.part(layer)}({x}{call})")


def decoder_layer(w: Writer) -> None:
    x, width = _rows(w, 3)
    part = w.part(f"nn.TransformerDecoderLayer({width}, {_heads(w, width)}, 16, batch_first=True)")
    w.line(f"{part}({x}, {x})")


def rotary(w: Writer) -> None:
    """Queries turned by their places, half against half or pair by pair."""
    x = w.floats(lambda v: v.ndim in (3, 4) and v.shape[-1] % 4 == 0 and v.shape[-1] > 0)
    width = w.known(x, -1)
    angles = w.line(
        f"torch.arange({x}.shape[-2]).float()[:, None] * "
        f"(1.0 / 100.0 ** (torch.arange(0, {width}, 2).float() / {width}))"
    )
    if w.choices.chance(2):
        table = w.line(f"torch.cat([{angles}, {angles}], -1)")
        half = width // 2
        turned = w.line(f"torch.cat([-{x}[..., {half}:], {x}[..., :{half}]], -1)")
        w.line(f"{x} * {table}.cos() + {turned} * {table}.sin()")
    else:
        a, b = w.line(f"{x}[..., 0::2]"), w.line(f"{x}[..., 1::2]")
        w.line(
            f"torch.stack([{a} * {angles}.cos() - {b} * {angles}.sin(), "
            f"{a} * {angles}.sin() + {b} * {angles}.cos()], -1).flatten(-2)"
        )


def positions(w: Writer) -> None:
    """Sines of places or times, or a table of them, cut to the length."""
    x, width = _rows(w, 3)
    form = w.choices.below(4)
    if form == 0:
        table = w.part(f"nn.Embedding(32, {width})")
        w.line(f"{x} + {table}(torch.arange({x}.shape[1]))")
    elif form == 1:
        table = w.part(f"nn.Parameter(torch.randn(1, 32, {width}))")
        w.line(f"{x} + {table}[:, :{x}.shape[1]]")
    elif form == 2:
        table = w.buffer(f"torch.randn(32, {width})")
        w.line(f"{x} + {table}[: {x}.size(1)].unsqueeze(0)")
    else:
        token = w.part(f"nn.Parameter(torch.randn(1, 1, {width}))")
        joined = w.choices.one_of(
            "torch.cat([{t}.expand({x}.shape[0], -1, -1), {x}], 1)",
            "torch.cat((self_t, {x}), dim=1)",
            "torch.cat([{x}, {t}.repeat({x}.shape[0], 1, 1)], 1)",
        )
        w.line(joined.replace("self_t", f"{token}.expand({x}.size(0), 1, {width})")
               .format(t=token, x=x))  # fmt: skip


# Norms.


def norm(w: Writer) -> None:
    x, width = _rows(w)
    kind = w.choices.one_of(
        "nn.LayerNorm({n})", "nn.LayerNorm({n}, elementwise_affine=False)", "nn.RMSNorm({n})",
        "nn.LayerNorm({n}, bias=False)", "nn.RMSNorm({n}, eps=1e-5)",
    )  # fmt: skip
    w.line(f"{w.part(kind.format(n=width))}({x})")


def written_norm(w: Writer) -> None:
    x, width = _rows(w)
    form = w.choices.below(3)
    if form == 0:
        mean = w.line(f"{x}.mean(-1, keepdim=True)")
        w.line(f"({x} - {mean}) / ({x}.var(-1, keepdim=True, unbiased=False) + 1e-3).sqrt()")
    elif form == 1:
        weight = w.part(f"nn.Parameter(torch.ones({width}))")
        w.line(f"{weight} * ({x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-5))")
    else:
        weight = w.part(f"nn.Parameter(torch.zeros({width}))")
        scaled = w.line(f"{x}.float() * torch.rsqrt({x}.float().square().mean(-1, True) + 1e-5)")
        w.line(f"({scaled} * (1.0 + {weight}.float())).type_as({x})")


def channel_norm(w: Writer) -> None:
    x, width = _channels(w)
    dims = w.first(x).ndim - 2
    if dims not in (1, 2):
        raise Unfit("images or signals")
    groups = 2 if width % 2 == 0 else 1
    kind = w.choices.one_of(
        f"nn.BatchNorm{dims}d({width})", f"nn.GroupNorm({groups}, {width})",
        f"nn.InstanceNorm{dims}d({width})", f"nn.InstanceNorm{dims}d({width}, affine=True)",
        f"nn.GroupNorm({groups}, {width}, affine=False)",
        f"nn.BatchNorm{dims}d({width}, affine=False)",
        f"nn.BatchNorm{dims}d({width}, track_running_stats=False)",
    )  # fmt: skip
    w.line(f"{w.part(kind)}({x})")


def batch_norm_of_rows(w: Writer) -> None:
    x, width = _rows(w, 2)
    w.line(f"{w.part(f'nn.BatchNorm1d({width})')}({x})")


# Images and signals.


def convolution(w: Writer) -> None:
    x, width = _channels(w)
    dims = w.first(x).ndim - 2
    if dims not in (1, 2):
        raise Unfit("images or signals")
    groups = w.choices.one_of(1, width, 2 if width % 2 == 0 else 1)
    out = width if groups == width else w.choices.one_of(8, 4, width * 2, 6)
    out += -out % groups
    kernel, stride, padding = w.choices.one_of(
        (3, 1, 1), (1, 1, 0), (3, 2, 1), (2, 2, 0), (5, 1, 2), (4, 4, 0), (3, 1, 0)
    )
    extra = w.choices.one_of(
        "", ", bias=False", ", padding_mode='circular'", ", padding_mode='reflect'",
        ", dilation=2", ", padding_mode='replicate'",
    )  # fmt: skip
    layer = (
        f"nn.Conv{dims}d({width}, {out}, {kernel}, stride={stride}, padding={padding}, "
        f"groups={groups}{extra})"
    )
    y = w.line(f"{w.part(layer)}({x})")
    if w.choices.chance(3):
        y = w.line(f"{w.part(f'nn.BatchNorm{dims}d({out})')}({y})")
        w.line(f"F.relu({y})")


def transposed_convolution(w: Writer) -> None:
    x, width = _channels(w)
    dims = w.first(x).ndim - 2
    if dims not in (1, 2):
        raise Unfit("images or signals")
    groups = 2 if width % 2 == 0 and w.choices.chance(3) else 1
    kernel, stride, padding, more = w.choices.one_of(
        (2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (3, 1, 1, 0)
    )
    layer = (
        f"nn.ConvTranspose{dims}d({width}, 4, {kernel}, stride={stride}, padding={padding}, "
        f"output_padding={more}, groups={groups})"
    )
    w.line(f"{w.part(layer)}({x})")


def functional_convolution(w: Writer) -> None:
    """The weight is a result, as in modulated convolutions and weight standardization."""
    x, width = _channels(w, 4)
    weight = w.part(f"nn.Parameter(torch.randn(4, {width}, 3, 3))")
    form = w.choices.one_of(
        "F.conv2d({x}, {w} / {w}.norm(dim=(1, 2, 3), keepdim=True), padding=1)",
        "F.conv2d({x}, {w} * {x}.mean(), padding=1)",
        "F.conv2d({x}, {w}, padding='same')",
        "F.conv2d({x}.transpose(2, 3), {w}.transpose(2, 3), padding=1).transpose(2, 3)",
        "F.conv2d({x}, {w}) + F.conv2d({x}, {w})",
    )
    w.line(form.format(x=x, w=weight))


def down_and_up(w: Writer) -> None:
    """A U: down, up again, and joined with what was there."""
    x, width = _channels(w, 4)
    down = w.choices.one_of(
        f"{w.part(f'nn.Conv2d({width}, {width}, 3, stride=2, padding=1)')}({x})",
        f"F.max_pool2d({x}, 2)",
        f"F.avg_pool2d({x}, 2)",
    )
    low = w.line(down)
    mode = w.choices.one_of(
        "mode='nearest'", "mode='bilinear'", "mode='bilinear', align_corners=True"
    )
    how = w.choices.one_of(f"size={x}.shape[-2:]", "scale_factor=2", "scale_factor=2.0")
    up = w.line(f"F.interpolate({low}, {how}, {mode})")
    if w.choices.chance(3):
        up = w.line(
            f"F.pad({up}, (0, {x}.shape[3] - {up}.shape[3], 0, {x}.shape[2] - {up}.shape[2]))"
        )
    w.line(w.choices.one_of(f"torch.cat([{x}, {up}], 1)", f"{x} + {up}"))


def patches(w: Writer) -> None:
    x, width = _channels(w, 4)
    side = w.choices.one_of(2, 4)
    form = w.choices.below(3)
    if form == 0:
        part = w.part(f"nn.Conv2d({width}, 8, {side}, stride={side})")
        w.line(f"{part}({x}).flatten(2).transpose(1, 2)")
    elif form == 1:
        y = w.line(
            f"{x}.reshape({x}.shape[0], {width}, {x}.shape[2] // {side}, {side}, "
            f"{x}.shape[3] // {side}, {side})"
        )
        y = w.line(f"{y}.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)")
        w.line(f"{w.part(f'nn.Linear({width * side * side}, 8)')}({y})")
    else:
        y = w.line(f"{x}.unfold(2, {side}, {side}).unfold(3, {side}, {side})")
        w.line(f"{y}.permute(0, 2, 3, 1, 4, 5).reshape({x}.shape[0], -1, {width * side * side})")


def merge_patches(w: Writer) -> None:
    """Four neighbours become channels, as between the stages of Swin."""
    x, width = _channels(w, 4)
    y = w.line(f"{x}.permute(0, 2, 3, 1)")
    y = w.line(f"F.pad({y}, (0, 0, 0, {y}.shape[2] % 2, 0, {y}.shape[1] % 2))")
    y = w.line(
        f"torch.cat([{y}[:, 0::2, 0::2], {y}[:, 1::2, 0::2], {y}[:, 0::2, 1::2], "
        f"{y}[:, 1::2, 1::2]], -1)"
    )
    y = w.line(f"{w.part(f'nn.LayerNorm({4 * width})')}({y})")
    w.line(f"{w.part(f'nn.Linear({4 * width}, {2 * width}, bias=False)')}({y})")


def windows(w: Writer) -> None:
    """Images cut into windows, and put together again; padded where they do not divide."""
    x, width = _channels(w, 4)
    side = w.choices.one_of(2, 4, 3)
    y = w.line(f"{x}.permute(0, 2, 3, 1)")
    if w.choices.chance(2):
        below, right = (f"({side} - {y}.shape[{axis}] % {side}) % {side}" for axis in (1, 2))
        y = w.line(f"F.pad({y}, (0, 0, 0, {right}, 0, {below}))")
    if w.choices.chance(2):
        y = w.line(f"torch.roll({y}, shifts=(-1, -1), dims=(1, 2))")
    tall, wide = (f"{y}.shape[{axis}] // {side}" for axis in (1, 2))
    z = w.line(f"{y}.view({y}.shape[0], {tall}, {side}, {wide}, {side}, {width})")
    z = w.line(f"{z}.permute(0, 1, 3, 2, 4, 5).reshape(-1, {side * side}, {width})")
    part = w.part(f"nn.Linear({width}, {width})")
    z = w.line(
        w.choices.one_of(
            f"{part}({z})",
            f"F.scaled_dot_product_attention({part}({z}), {z}, {z})",
            f"{z} + {part}({z})",
        )
    )
    z = w.line(f"{z}.view(-1, {tall}, {wide}, {side}, {side}, {width})")
    z = w.line(
        f"{z}.permute(0, 1, 3, 2, 4, 5).reshape({y}.shape[0], {y}.shape[1], {y}.shape[2], -1)"
    )
    w.line(f"{z}[:, :{x}.shape[2], :{x}.shape[3]].permute(0, 3, 1, 2)")


def squeeze_and_excite(w: Writer) -> None:
    x, width = _channels(w, 4)
    a, b = w.part(f"nn.Conv2d({width}, 4, 1)"), w.part(f"nn.Conv2d(4, {width}, 1)")
    pooled = w.choices.one_of(f"F.adaptive_avg_pool2d({x}, 1)", f"{x}.mean((2, 3), keepdim=True)")
    w.line(f"{x} * torch.sigmoid({b}(F.relu({a}({pooled}))))")


def sampled(w: Writer) -> None:
    """Pixels taken at places that follow from values, as by a flow."""
    x, _ = _channels(w, 4)
    mode = w.choices.one_of(
        "", ", mode='nearest'", ", padding_mode='border'", ", align_corners=True"
    )
    flow = w.part(f"nn.Conv2d({w.known(x, 1)}, 2, 3, padding=1)")
    base = w.line(f"F.affine_grid(torch.eye(2, 3)[None].repeat({x}.shape[0], 1, 1), {x}.shape)")
    grid = w.line(f"{base} + 0.1 * torch.tanh({flow}({x})).permute(0, 2, 3, 1)")
    w.line(f"F.grid_sample({x}, {grid}{mode})")


# State, branches, numbers.


def counter(w: Writer) -> None:
    """A running count, as batch norms and caches keep it."""
    x = w.floats()
    count = w.buffer(w.choices.one_of("torch.zeros(())", "torch.zeros(1, dtype=torch.long)"))
    w.statement(
        w.choices.one_of(f"{count} += 1", f"{count}.add_(1)", f"{count}.copy_({count} + 1)")
    )
    w.line(f"{x} * {count}")


def running_mean(w: Writer) -> None:
    x, width = _rows(w)
    mean = w.buffer(f"torch.zeros({width})")
    w.statement(f"{mean}.mul_(0.9).add_({x}.flatten(0, -2).mean(0), alpha=0.1)")
    w.line(f"{x} - {mean}")


def cache(w: Writer) -> None:
    """Keys written into a buffer, at places from the start, a number or a tensor."""
    x, width = _rows(w, 3)
    held = w.buffer(f"torch.zeros(4, 40, {width})")
    form = w.choices.below(4)
    if form == 0:
        w.statement(f"{held}[:{x}.shape[0], :{x}.shape[1]] = {x}")
    elif form == 1:
        w.statement(f"{held}[:{x}.shape[0]].index_copy_(1, torch.arange({x}.shape[1]), {x})")
    elif form == 2:
        w.statement(f"{held}[:{x}.shape[0]].narrow(1, 2, {x}.shape[1]).copy_({x})")
    else:
        w.statement(f"{held}[:{x}.shape[0], torch.arange({x}.shape[1]) + 1] = {x}")
    w.line(w.choices.one_of(f"{held}[:{x}.shape[0]].sum(1)", f"{held} * 2", f"{held}[:, :2]"))


def buffer_that_is_given_back(w: Writer) -> None:
    x = w.floats(lambda v: v.ndim >= 1)
    held = w.buffer("torch.arange(4.0)")
    w.line(w.choices.one_of(held, f"{held}[1:]", f"{held}.view(2, 2)"))
    w.line(f"{x} + {held}.sum()")


def branch(w: Writer) -> None:
    """An if of Python's, of a number or of a size."""
    x = w.floats(lambda v: v.ndim >= 1)
    flags = w.fitting(lambda v: type(v) is bool)
    test = w.choices.one_of(*flags, f"{x}.shape[0] > 2", f"{x}.shape[-1] % 2 == 0", "self.training")
    w.line(f"F.relu({x}) if {test} else {x} * 0.5")


def conditional(w: Writer) -> None:
    """A branch in the graph."""
    x = w.floats(lambda v: v.ndim >= 1 and v.numel() > 0)
    form, like = w.choices.one_of(
        ("torch.cond({x}.sum() > 0, lambda a: a * 2, lambda a: a - 1, ({x},))", "{x} * 2"),
        (
            "torch.utils.checkpoint.checkpoint(lambda a: F.gelu(a) * 2, {x}, use_reentrant=False)",
            "F.gelu({x}) * 2",
        ),
        ("torch.func.vmap(lambda a: a * 2 + 1)({x})", "{x} * 2 + 1"),
        ("torch.compiler.nested_compile_region(lambda a: F.gelu(a))({x})", "F.gelu({x})"),
    )
    w.line(form.format(x=x), like=like.format(x=x))


def loop(w: Writer) -> None:
    """One layer, used several times."""
    x, width = _rows(w)
    part = w.part(f"nn.Linear({width}, {width})")
    for _ in range(w.choices.one_of(2, 3)):
        x = w.line(f"torch.tanh({part}({x})) + {x}")


def interrupted(w: Writer) -> None:
    """Something that Dynamo breaks a graph at."""
    x = w.floats(lambda v: v.numel() > 0)
    w.statement("torch._dynamo.graph_break()")
    w.line(f"{x} * 2")


def count_of_values(w: Writer) -> None:
    """Sizes that follow from values."""
    x = w.floats(lambda v: v.ndim >= 1 and v.numel() > 0)
    w.line(
        w.choices.one_of(
            f"{x}[{x} > 0].sum()",
            f"torch.nonzero({x} > 0.5).sum()",
            f"{x}.masked_select({x} > 0) * 2",
        )
    )


def recurrent(w: Writer) -> None:
    x, width = _rows(w, 3)
    kind = w.choices.one_of("nn.LSTM", "nn.GRU", "nn.RNN")
    w.line(f"{w.part(f'{kind}({width}, 4, batch_first=True)')}({x})[0]")


def gated_cell(w: Writer) -> None:
    """A cell of a recurrent layer, written out over steps."""
    x, width = _rows(w, 3)
    part = w.part(f"nn.GRUCell({width}, 4)")
    state = w.line(f"{part}({x}[:, 0])")
    w.line(f"{part}({x}[:, -1], {state})")


def mixture(w: Writer) -> None:
    """Experts weighted by a router."""
    x, width = _rows(w)
    router = w.part(f"nn.Linear({width}, 3)")
    weights = w.line(f"torch.topk({router}({x}).softmax(-1), 2, -1)[0]")
    a, b = (w.part(f"nn.Linear({width}, {width})") for _ in range(2))
    w.line(f"{a}({x}) * {weights}[..., :1] + {b}({x}) * {weights}[..., 1:]")


MOTIFS: dict[str, Motif] = {
    motif.__name__: motif
    for motif in (
        linear, two_linears_of_one, gated, tied_head, embedding, bilinear, own_parameter,
        attention, cross_attention, grouped_queries, multihead, encoder_layer, decoder_layer,
        rotary, positions, norm, written_norm, channel_norm, batch_norm_of_rows, convolution,
        transposed_convolution, functional_convolution, down_and_up, patches, merge_patches,
        windows, squeeze_and_excite, sampled, counter, running_mean, cache,
        buffer_that_is_given_back, branch, conditional, loop, interrupted, count_of_values,
        recurrent, gated_cell, mixture,
    )
}  # fmt: skip
