"""What a person reads of a plan, on the terminal and in the browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from rich.console import Console, RenderableType

from singlecard.engine.cards import find_card
from singlecard.engine.plan_log import NetworkTensor
from singlecard.engine.plan_report import Kernel, PlanReport, Synchronization
from singlecard.report.html import plan_html
from singlecard.report.plan_rows import (
    FallbackRow,
    format_bytes,
    format_flops,
    format_seconds,
    module_text,
)
from singlecard.report.render import fallback_table, plan_table

PATHS = ("layer.0.attention.query", "layer.0.attention.key")


def kernel(kind: str, moved: int | None, *modules: str, **more: object) -> Kernel:
    values = {"arithmetic": None, "flops": None, "modules_inferred": False, "ops": (), **more}
    return Kernel("k", kind, (), (), (), modules, bytes_read=moved, bytes_written=0, **values)  # type: ignore[arg-type]


REPORT = PlanReport(
    kernels=(
        kernel("kgen", 1_000_000, "embed", modules_inferred=True),
        kernel(
            "gemm", 8_000_000, *PATHS, arithmetic="Int8", flops=3_000_000_000, ops=("aten.linear",)
        ),
        kernel("kgen", 1_000_000, "head[bold]"),
    ),
    synchronization=(Synchronization("s", "signal"),),
    network_tensors=(
        NetworkTensor("x", (-1, 128), "Int64", True, (((1, 128), (4, 128), (8, 128)),)),
        NetworkTensor("<y>", (8, 768), "Half", False),
    ),
    floor_bytes=5_000_000,
    weights_bytes=4_500_000,
    scratch_bytes=8_300_000,
    engine_bytes=4_700_000,
)
DYNAMIC = PlanReport((kernel("kgen", None, "embed"),), (), (), None, 10, 20, 30)
FALLBACK = [FallbackRow("aten.nonzero", "its result has a <dynamic> size", 2, "model.py:12: a[m]")]


def text_of(drawn: RenderableType) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get()


def line_with(text: str, word: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if word in line]
    return line.split()


def test_the_terminal_shows_totals_against_the_floor() -> None:
    """Else a user cannot tell a good plan from a wasteful one."""
    text = text_of(plan_table(REPORT, title="engine 0", cards=[find_card("RTX 3090")]))
    assert "engine 0" in text
    assert line_with(text, "2.00 times the floor")[:3] == ["moves", "10", "MB"]
    assert line_with(text, "synchronizations")[:2] == ["kernels", "3"]
    assert line_with(text, "beside weights")[:3] == ["scratch", "8.3", "MB"]
    assert line_with(text, "on disk")[:3] == ["engine", "4.7", "MB"]
    assert line_with(text, "100%") == ["Int8", "1", "3", "GFLOP", "100%"]


def test_the_heaviest_kernels_come_first_with_their_modules() -> None:
    """Else finding what to improve means reading the whole list."""
    text = text_of(plan_table(REPORT, top=2))
    heaviest = text.index("layer.0.attention.{query, key}")
    assert heaviest < text.index("~ embed")
    assert "head[bold]" not in text
    assert "head[bold]" in text_of(plan_table(REPORT))


def test_each_card_has_its_least_time() -> None:
    """Else nobody knows what a faster card would bring."""
    text = text_of(plan_table(REPORT, cards=[find_card("RTX 3090"), find_card("DGX Spark")]))
    # 8 MB at 936 GB/s are 8.5 µs, 3 GFLOP at 284 TOPS 10.6 µs; the others move 1 MB each.
    assert line_with(text, "RTX 3090")[-6:] == ["yes", "12.7", "µs", "1", "of", "3"]
    assert "*36.6 µs" in text


def test_unknown_sizes_are_said_to_be_unknown() -> None:
    """Else a dynamic plan looks as if it moved nothing."""
    text = text_of(plan_table(DYNAMIC))
    assert line_with(text, "depend on the shapes")[:2] == ["moves", "unknown"]
    assert "0 B" not in text.replace("10 B", "").replace("20 B", "").replace("30 B", "")
    assert "unknown" in plan_html([("engine", DYNAMIC)])


def test_reasons_are_listed() -> None:
    """Else a user does not learn why part of a model stays slow."""
    text = text_of(fallback_table(FALLBACK))
    assert "its result has a <dynamic> size" in text
    assert "model.py:12: a[m]" in text


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps the text."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href"}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_stands_alone() -> None:
    """Else a report that is sent by mail, or read offline, is broken."""
    page = plan_html([("a", REPORT), ("b", DYNAMIC)], title="ResNet <50>", fallback=FALLBACK)
    parsed = Page(page)
    assert not parsed.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"url\(|@import|https?:", page)
    text = "".join(parsed.words)
    for words in ("ResNet <50>", "its result has a <dynamic> size", "<y>", "head[bold]"):
        assert words in text
    assert "[1, 128] to [8, 128]" in text


def test_names_from_a_model_are_text_in_the_page() -> None:
    """Else a module's name can run a script in the reader's browser."""
    attack = '"><script>alert(1)</script>'
    report = PlanReport((kernel("kgen", 1, attack),), (), (), 1, 1, 1, 1)
    page = plan_html(
        [(attack, report)], title=attack, fallback=[FallbackRow(attack, attack, 1, attack)]
    )
    assert "<script" not in page
    assert "script" not in Page(page).tags


def test_a_long_list_is_folded_but_whole() -> None:
    """Else the page of a large model is either endless or incomplete."""
    kernels = tuple(kernel("kgen", 10, f"layer.{index}") for index in range(30))
    page = plan_html([("engine", PlanReport(kernels, (), (), 1, 1, 1, 1))], top=5)
    assert "All 30 kernels in order" in page
    assert page.count(">layer.29<") == 1
    assert page.count(">layer.0<") == 2


@pytest.mark.parametrize(
    ("modules", "inferred", "text"),
    [
        ((), False, "unknown"),
        (("",), False, "(model)"),
        (("a.b",), True, "~ a.b"),
        (PATHS, False, "layer.0.attention.{query, key}"),
        (("a", "b.c"), False, "a, b.c"),
        (("a.b", "a"), False, "a.b, a"),
        (("a.1", "a.2", "a.3", "a.4", "a.5"), False, "a.{1, 2, 3, 2 more}"),
    ],
)
def test_modules_fit_in_a_line(modules: tuple[str, ...], inferred: bool, text: str) -> None:
    """Else a fused kernel's row is longer than the screen, or does not name its layer."""
    assert module_text(modules, inferred) == text


def test_numbers_have_units() -> None:
    """Else 64074324 must be counted by eye."""
    assert [format_bytes(size) for size in (0, 999, 1_000, 64_074_324, 999_700_000, None)] == [
        "0 B",
        "999 B",
        "1 kB",
        "64.1 MB",
        "1 GB",
        "unknown",
    ]
    assert format_flops(8_252_948_480) == "8.25 GFLOP"
    assert [format_seconds(value) for value in (1.27e-5, 4.3e-4)] == ["12.7 µs", "0.43 ms"]
