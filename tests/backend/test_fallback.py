"""What runs where engines do not: PyTorch as it is, or compiled by TorchInductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config, metrics
from torch._inductor.utils import run_and_get_code

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


class Attending(nn.Module):
    """Attention between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection, self.head = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + F.gelu(self.head(y))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attending, (2, 5, 8)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        (2, 3, 8, 8),
    ),
}


def code_of(model: nn.Module, x: Tensor, dynamic: bool, **how: Any) -> tuple[int, list[str]]:
    """Return how many kernels TorchInductor makes of a model, and the lines of its code."""
    torch._dynamo.reset()
    metrics.reset()
    with torch.no_grad(), config.patch(force_disable_caches=True):
        answer, code = run_and_get_code(torch.compile(model, dynamic=dynamic, **how), x)
        torch.testing.assert_close(answer, model(x))
    numbered = "# AOT ID:"  # graphs are counted
    lines = [line for text in code for line in text.splitlines() if not line.startswith(numbered)]
    return metrics.generated_kernel_count, lines


@pytest.mark.parametrize("targets", [None, "sm89"], ids=["", "with engines built"])
@pytest.mark.parametrize(("name", "dynamic"), [("attention", True), ("convolutions", False)])
def test_the_code_is_that_of_plain_inductor(
    name: str, dynamic: bool, targets: str | None, tmp_path: Path
) -> None:
    """A graph that was changed on the way, or other settings, would be slower than plain Inductor.

    Times of the same code are `benchmarks/fallback.py`'s.
    """
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(shape)
    options = {"fallback": "inductor", "targets": targets, "cache_dir": tmp_path}
    kernels, code = code_of(model, x, dynamic, backend="singlecard", options=options)
    assert (kernels, code) == code_of(model, x, dynamic, backend="inductor")
    assert kernels > 0 and code


def test_inductors_settings_reach_it() -> None:
    """`torch.compile` takes no mode beside options: this is how max-autotune is had."""
    model, x = nn.Linear(8, 8).eval(), X
    seen = []

    def compile_fx(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((config.max_autotune, config.freezing))
        return module.forward

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
        settings = {**torch._inductor.list_mode_options("max-autotune"), "freezing": True}
        with config.patch(settings):
            torch.compile(model, backend="singlecard", options={"fallback": "inductor"})(x)
        with pytest.raises(RuntimeError, match="[mM]ode or options"):
            torch.compile(
                model,
                backend="singlecard",
                mode="max-autotune",
                options={"fallback": "inductor"},
            )
    assert seen == [(True, True)]


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
