"""What no engine can take: a clear reason, and eager's answer where eager has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
import singlecard.backend
from singlecard.errors import CaptureError
from singlecard.report.measure import GRAPH_BREAK
from tests.backend.harness import Watched, equal

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

COMPLEX: dict[str, Callable[[torch.Tensor], Any]] = {
    "as it is": lambda x: x * 2,
    "products": lambda x: (x @ x.mT).abs(),
    "in the middle": lambda x: (torch.complex(x.real, x.real) * 2).real + 1,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex(name: str) -> None:
    """TensorRT has no complex numbers: their ops stay, and are named."""
    x = torch.complex(X, X)
    compiled = Watched(COMPLEX[name])
    equal(compiled(x), COMPLEX[name](x))
    assert any("complex" in reason for reason in compiled.reasons)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_quantized_tensors(inside: bool) -> None:
    """Quantized tensors of PyTorch answer as in eager, given or made in the model."""

    def model(x: torch.Tensor) -> torch.Tensor:
        y = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8) if inside else x
        return y.dequantize() * 2

    x = X if inside else torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    compiled = Watched(model)
    equal(compiled(x), model(x))
    if inside:
        assert any("quantize_per_tensor" in reason for reason in compiled.reasons)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_tensors(layout: str) -> None:
    """Dynamo leaves sparse tensors to Python; the report must say that it did."""
    sparse = X.relu().to_sparse() if layout == "coo" else X.relu().to_sparse_csr()
    dense = torch.randn(8, 3)

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", sparse)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.matrix @ x + 1  # type: ignore[no-any-return, operator]

    with torch.no_grad():
        equal(Watched(lambda a, b: a @ b + 1)(sparse, dense), sparse @ dense + 1)
        equal(Watched(Held())(dense), sparse @ dense + 1)


def test_report_names_graph_breaks() -> None:
    """A report with no engine, no op and no reason tells nobody what to change."""
    report = singlecard.verify(lambda x: x.to_sparse().to_dense() + 1, (X,))
    assert report.mismatch is None and report.max_abs_error == 0
    (op, reason), *_ = report.fallback
    assert op == GRAPH_BREAK and "sparse" in reason and "\n" not in reason
    assert "sparse" in str(report)


def test_report_has_the_users_line() -> None:
    """The op's name is not enough to find it in a model of a thousand lines."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x) + 1

    report = singlecard.verify(model, (X,), options={"min_block_size": 1})
    assert len(report.fallback) == len(report.fallback_lines) == 1
    assert "test_bad_graphs.py" in report.fallback_lines[0]
    assert report.to_dict()["fallback_lines"] == report.fallback_lines


def test_report_has_the_time_of_capture() -> None:
    """Most of the wait is tracing: a list of stages without it sends one looking elsewhere."""
    timings = singlecard.verify(nn.Linear(8, 4).eval(), (X,)).timings
    assert timings["capture"] > 0
    assert sum(value for stage, value in timings.items() if stage != "total") <= timings["total"]


EMPTY: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "a classifier": (
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1)).eval(),
        (0, 8),
    ),
    "a convolution": (nn.Conv2d(3, 4, 3).eval(), (0, 3, 8, 8)),
    "sums": (lambda x: (x.sum(), x.mean(), x.sum(0), torch.cat([x, x])), (0, 8)),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", EMPTY)
def test_zero_size_batches(name: str, dynamic: bool | None) -> None:
    """The last batch of a filtered data set may be empty, and must not stop the run."""
    model, shape = EMPTY[name]
    compiled = Watched(model, dynamic)
    with torch.no_grad():
        for rows in (0, 3, 0):
            x = torch.randn(rows, *shape[1:])
            equal(compiled(x), model(x))
    # Where another extent is not known, the sentence says so; otherwise nothing is left out.
    assert all(", s" in reason and "no elements" in reason for reason in compiled.reasons)
    assert dynamic or not compiled.reasons


ERRORS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "two devices": (lambda a, b: a + b, (X, X.to("meta"))),
    "types that do not fit": (nn.Linear(8, 8).half().eval(), (X,)),
    "shapes that do not fit": (lambda x: x @ x, (X,)),
    "nothing to reduce": (lambda x: x.max(), (X[:0],)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_eager_refuses_is_refused(name: str) -> None:
    """An answer to a question that PyTorch refuses hides the user's mistake."""
    model, args = ERRORS[name]
    with torch.no_grad(), pytest.raises(RuntimeError):
        model(*args)
    with pytest.raises(RuntimeError):
        Watched(model)(*args)


def test_devices_apart() -> None:
    """Two devices in one graph that never meet: each op goes where it can."""
    compiled = Watched(lambda a, b: (a + 1, b + 1))
    got = compiled(X, X.to("meta"))
    equal(got[0], X + 1)
    assert got[1].device.type == "meta" and compiled.lowered == 1
    assert any("meta" in reason for reason in compiled.reasons)


def test_graph_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTAutograd has limits of its own: the model runs, and the reason is kept."""

    def fail(*_: Any) -> Any:
        raise CaptureError("this graph writes to what is not an input")

    monkeypatch.setattr(singlecard.backend, "capture", fail)
    compiled = Watched(lambda x: x + 1)
    equal(compiled(X), X + 1)
    assert compiled.reasons == ["this graph writes to what is not an input"]


def test_operator_without_a_shape_rule() -> None:
    """A custom op that nobody told its shapes breaks the graph; the rest is still lowered."""
    with torch.library._scoped_library("singlecard_test", "FRAGMENT") as library:
        library.define("opaque(Tensor x) -> Tensor")
        library.impl("opaque", lambda x: x * 3, "CPU")

        def model(x: torch.Tensor) -> torch.Tensor:
            return torch.ops.singlecard_test.opaque(x + 1) * 2  # type: ignore[no-any-return]

        compiled = Watched(model)
        equal(compiled(X), (X + 1) * 6)
        assert compiled.lowered >= 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors() -> None:
    """Ragged batches answer as in eager."""
    layer = nn.Linear(8, 4).eval()
    parts = [torch.randn(2, 8), torch.randn(3, 8)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    with torch.no_grad():
        got = Watched(lambda x: layer(x).relu())(nested)
        for ours, part in zip(got.unbind(), parts, strict=True):
            equal(ours, layer(part).relu())
