"""What runs where engines do not: PyTorch as it is, or compiled by TorchInductor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from singlecard import backend
from singlecard.options import Options
from singlecard.session import Session

X = torch.linspace(-1, 1, 32).reshape(4, 8)


class Inductor:
    """Counts graphs that TorchInductor is given, and compiles them for real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch._inductor import compile_fx

        self.graphs: list[list[str]] = []
        compile_inner = compile_fx.compile_fx

        def counted(module: Any, examples: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            self.graphs.append([str(node.target) for node in module.graph.nodes])
            return compile_inner(module, examples, *args, **kwargs)

        monkeypatch.setattr(compile_fx, "compile_fx", counted)


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> Inductor:
    return Inductor(monkeypatch)


def test_without_a_card_the_whole_model_is_inductors(inductor: Inductor) -> None:
    """A data-centre card that TensorRT-RTX does not serve would run at eager's pace."""
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval()
    with torch.no_grad(), pytest.warns(UserWarning, match="GPU"):
        call = torch.compile(model, backend="singlecard", options={"fallback": "inductor"})
        torch.testing.assert_close(call(X), model(X))
    assert len(inductor.graphs) == 1


def test_without_the_option_nothing_is_compiled(inductor: Inductor) -> None:
    """TorchInductor takes a compiler and minutes: it comes when asked for."""
    model = nn.Linear(8, 8).eval()
    with torch.no_grad(), pytest.warns(UserWarning, match="GPU"):
        torch.testing.assert_close(torch.compile(model, backend="singlecard")(X), model(X))
    assert not inductor.graphs


class Cut(nn.Module):
    """An op in the middle stays in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.softmax(self.first(x), -1) * 2
        return self.last(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dynamic", [False, True])
def test_pieces_between_engines_are_inductors(inductor: Inductor, dynamic: bool) -> None:
    """Between two engines, eager PyTorch launches a kernel for each op."""
    options = Options.parse(
        {"fallback": "inductor", "exclude_ops": "aten.softmax,aten._softmax", "min_block_size": 1}
    )
    model = Cut().eval()

    def compiler(graph: Any, examples: Sequence[Any]) -> Any:
        return backend.compile_in(Session(options, "reference", False), graph, examples)

    with torch.no_grad():
        call = torch.compile(model, backend=compiler, dynamic=dynamic)
        for rows in (4, 3) if dynamic else (4,):
            torch.testing.assert_close(call(X[:rows]), model(X[:rows]))
    assert [ops[-2:] for ops in inductor.graphs] == [["aten._softmax.default", "output"]]


def test_inductor_that_fails_leaves_eager_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine without a C++ compiler must still answer."""

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch._inductor.standalone_compile", failing)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", failing)
    model = Cut().eval()
    options = Options.parse(
        {"fallback": "inductor", "exclude_ops": "aten.softmax,aten._softmax", "min_block_size": 1}
    )

    def compiler(graph: Any, examples: Sequence[Any]) -> Any:
        return backend.compile_in(Session(options, "reference", False), graph, examples)

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=compiler)(X), model(X))
        torch._dynamo.reset()
        call = torch.compile(model, backend="singlecard", options={"fallback": "inductor"})
        torch.testing.assert_close(call(X), model(X))
    assert caplog.text.count("no C++ compiler") == 2
