"""Two captures of one model are one engine, and two models never are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from singlecard.backend import compile_in
from singlecard.engine.build import key_digest, key_parts
from singlecard.lowering.lower import lower
from singlecard.options import Options
from singlecard.passes import simplify
from singlecard.session import Session
from tests.graphs import divided, program_of, targets


def digest(module: Callable[..., Any], *args: torch.Tensor, dynamic: bool | None = None) -> str:
    """The key under which the model's one engine is stored."""
    program = program_of(module, *args, dynamic=dynamic)
    simplify(program)
    (segment,) = divided(program, lambda node: False).segments
    return key_digest(key_parts(lower(program, segment), Session(Options()).settings))


class Net(nn.Module):
    """A small model with one of everything that a key must see."""

    def __init__(
        self, stride: int = 1, eps: float = 1e-5, slope: float = 2.0, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
        self.norm = nn.LayerNorm(8, eps=eps)
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.interpolate(self.conv(x), size=(8, 8))
        return self.norm(y) * self.slope  # type: ignore[no-any-return]


class Renamed(nn.Module):
    """The same computation with other names, nested elsewhere, written in another order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        kernel = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Sequential(nn.LayerNorm(8))
        self.parts = nn.ModuleDict({"first": nn.Sequential(kernel)})

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.parts["first"](image)
        resized = F.interpolate(features, size=(8, 8))
        factor = 2.0
        return self.last(resized) * factor  # type: ignore[no-any-return]


X = torch.ones(1, 3, 8, 8)


@pytest.fixture(scope="module")
def base() -> str:
    return digest(Net(), X)


def test_names_and_nesting_do_not_count(base: str) -> None:
    """A refactoring that changes no number would build every engine again."""
    assert digest(Renamed(), X) == base
    assert digest(lambda x: Net()(x), X) == base


SCRIPT = """
import sys, torch
from tests.capture.test_aot import Net, X, digest
print(digest(Net(), X))
"""


def test_another_process_has_the_same_key(base: str) -> None:
    """What CI built would not be found in production."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'backend'}"}
    environment["PYTHONHASHSEED"] = "7"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split()[-1] == base


@pytest.mark.parametrize(
    "module",
    [Net(seed=1), Net(eps=1e-6), Net(slope=3.0), Net(slope=-2.0)],
    ids=["weights", "eps", "factor", "sign"],
)
def test_other_models_have_other_keys(base: str, module: nn.Module) -> None:
    """A stale engine answers with another model's numbers."""
    assert digest(module, X) != base


def test_attributes_and_shapes_count() -> None:
    """Stride, padding, groups and the input's shape change answers, and so the key."""
    x = torch.ones(1, 4, 8, 8)

    def conv(**kwargs: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(4, 4, 3, **kwargs)

    keys = {
        digest(conv(), x),
        digest(conv(stride=2), x),
        digest(conv(padding=1), x),
        digest(conv(dilation=2), x),
        digest(conv(groups=2), x),
        digest(conv(), torch.ones(2, 4, 8, 8)),
        digest(conv(), torch.ones(1, 4, 9, 8)),
        digest(conv().half(), x.half()),
    }
    assert len(keys) == 8


def test_order_of_outputs_and_inputs_counts() -> None:
    """Two engines that differ in the order of their outputs would be taken for each other."""
    x, y = torch.ones(2), torch.ones(2)
    assert digest(lambda x: (x + 1, x * 2), x) != digest(lambda x: (x * 2, x + 1), x)
    assert digest(lambda x, y: x - y, x, y) != digest(lambda x, y: y * -1 + x, x, y)


def test_settings_are_part_of_the_key() -> None:
    """TF32, targets and limits change the plan but not the network."""
    program = program_of(nn.Linear(4, 4), torch.ones(2, 4))
    simplify(program)
    (segment,) = divided(program, lambda node: False).segments
    lowered = lower(program, segment)
    choices: list[dict[str, Any]] = [
        {},
        {"precision": "tf32"},
        {"targets": "sm89"},
        {"targets": ["sm86", "sm89"]},
        {"workspace_bytes": 1 << 20},
    ]
    keys = {
        key_digest(key_parts(lowered, Session(Options.parse(choice)).settings))
        for choice in choices
    }
    assert len(keys) == len(choices)


def test_attention_is_kept_whole() -> None:
    """Taken apart by device, attention would be another network on a CPU than on a card."""
    q = torch.randn(1, 2, 4, 8)

    def model(q: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3)

    assert targets(program_of(model, q)) == ["singlecard.attention.default"]


def test_dropout_in_attention_is_not_dropped() -> None:
    """Kept whole, attention with dropout would lose its dropout without a word."""
    q = torch.randn(1, 2, 4, 8)
    program = program_of(lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), q)
    assert "singlecard.attention.default" not in targets(program)


class Caches(nn.Module):
    """Three states, written to in different ways."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "c"):
            self.register_buffer(name, torch.zeros(4))

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        self.a.copy_(x)
        self.b.index_copy_(0, i, x[:1])
        self.c[1:3].add_(x[1:3])
        return self.a + self.b + self.c


def test_every_mutation_is_accounted_for() -> None:
    """A cache that is not written answers the first token right and all others wrong."""
    module = Caches()
    program = program_of(module, torch.ones(4), torch.tensor([2]))
    assert len(program.mutations) == len(set(program.mutations)) == 3
    # ``a`` is overwritten as a whole, so its old value is no input; all are outputs.
    assert len(program.outputs) == len(program.results) + 3
    assert not set(program.mutations) & set(program.frozen)


@pytest.mark.parametrize("precision", ("fp32", "fp16"))
def test_a_singular_matrix_raises_and_the_rest_is_lowered(precision: str) -> None:
    """A model that inverts one matrix would run in eager PyTorch as a whole, or never raise."""
    module = Solve()
    options = Options.parse({"precision": precision, "min_block_size": 1})
    session = Session(options, "reference", build=False)
    compiled = torch.compile(module, backend=lambda *args: compile_in(session, *args))
    x = torch.eye(4) * 2 + 1
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-2, atol=1e-2)
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            compiled(torch.ones(4, 4))
    (graph,) = session.graphs
    reasons = {item.op: item.reason for item in graph.fallback}
    assert set(reasons) == {"aten.linalg_inv_ex", "aten._linalg_check_errors"}
    assert "for its effect" in reasons["aten._linalg_check_errors"]


class Solve(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(torch.linalg.inv(x)) @ x


def test_export_still_works_in_a_process_that_has_captured() -> None:
    """PyTorch lists its composite ops once, for good: a list made while some were hidden would
    break ``torch.export`` and ``torch.onnx.export`` behind the first capture.
    """
    code = (
        "import torch; from tests.graphs import program_of; "
        "program_of(torch.nn.Linear(2, 2), torch.ones(1, 2)); "
        "one = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)); "
        "resize = torch.ops.aten._upsample_nearest_exact1d.default; "
        "one.run_decompositions({resize: lambda *args: None})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
