"""One thing changed at a time: the key changes, and names what was changed; nothing else counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from singlecard.backend import compile_graph
from singlecard.engine import build
from singlecard.engine.build import find_engine, get_engine, key_digest
from singlecard.engine.cache import Cache
from singlecard.engine.nearest import differences
from singlecard.network.building import BuildSettings
from singlecard.observe import counters
from singlecard.options import Options
from singlecard.report.keys import keys_of_model
from singlecard.report.model import Model
from singlecard.report.verify import compile_model, verify

X = torch.ones(2, 3, 8, 8)


class Net(nn.Module):
    """A small model with one of everything that a key must see."""

    def __init__(self, stride: int = 1, eps: float = 1e-5, negative: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4, eps=eps)
        self.negative = negative

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.second(self.first(x)), self.negative)
        return self.norm(self.third(y))  # type: ignore[no-any-return]


def key(
    module: Callable[..., Any],
    *args: torch.Tensor,
    dynamic: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, str]:
    """The key of a model's one engine, worked out as a build does."""
    model = Model("model", module, args or (X,), {}, None if dynamic is None else dict(dynamic))
    (found,) = keys_of_model(model, Options.parse({"targets": "sm89", **options}))
    return found


@pytest.fixture(scope="module")
def base() -> dict[str, str]:
    return key(Net())


def one_element(module: Net) -> Net:
    with torch.no_grad():
        module.second.weight[3, 3, 2, 2] += 1e-6
    return module


def exchanged(module: Net) -> Net:
    module.second, module.third = module.third, module.second
    return module


#: What is changed, and the parts that a person expects to see for it.
CHANGES: dict[str, tuple[Callable[[], dict[str, str]], set[str]]] = {
    "one element of one weight": (lambda: key(one_element(Net())), {"weights"}),
    "weights of two layers exchanged": (lambda: key(exchanged(Net())), {"weights"}),
    "stride": (lambda: key(Net(stride=2)), {"structure", "outputs"}),
    "epsilon": (lambda: key(Net(eps=1e-6)), {"structure"}),
    "slope of an activation": (lambda: key(Net(negative=0.2)), {"structure"}),
    "batch": (lambda: key(Net(), torch.ones(3, 3, 8, 8)), {"inputs", "outputs"}),
    "FP16": (lambda: key(Net(), precision="fp16"), {"structure", "weights"}),
    "BF16": (lambda: key(Net(), precision="bf16"), {"structure", "weights"}),
    "a model in FP16": (
        lambda: key(Net().half(), X.half()),
        {"inputs", "structure", "weights", "outputs"},
    ),
    "TF32": (lambda: key(Net(), precision="tf32"), {"tf32"}),
    "another card": (lambda: key(Net(), targets="sm86"), {"targets"}),
    "one card more": (lambda: key(Net(), targets="sm86,sm89"), {"targets"}),
    "any card": (lambda: key(Net(), targets="portable"), {"targets"}),
    "scratch memory": (lambda: key(Net(), workspace_bytes=1 << 20), {"workspace_bytes"}),
    "sparse weights": (lambda: key(Net(), sparse_weights=True), {"sparse_weights"}),
    "weight streaming": (lambda: key(Net(), memory_budget=0), {"weight_streaming"}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_another_key_and_is_named(base: dict[str, str], change: str) -> None:
    """A stale engine answers with other numbers; a wrong name has people search in vain."""
    make, expected = CHANGES[change]
    other = make()
    assert key_digest(other) != key_digest(base)
    named = {item.part for item in differences(base, other)}
    # Layers that reshape to a size hold it, so that another batch may be seen in them as well.
    assert expected <= named <= expected | ({"structure"} if "inputs" in expected else set())


def test_a_dynamic_axis_and_its_range_count() -> None:
    """An engine for batches up to 4 would be asked for 8."""
    small = key(Net(), dynamic={"0": {0: (2, 4)}})
    large = key(Net(), dynamic={"0": {0: (2, 8)}})
    assert [item.part for item in differences(small, large)] == ["profiles"]
    (difference,) = differences(small, large)
    assert "(4, 3, 8, 8)" in difference.here and "(8, 3, 8, 8)" in difference.there
    fixed = {item.part for item in differences(key(Net()), small)}
    assert {"inputs", "outputs", "profiles"} <= fixed
    assert len({key_digest(parts) for parts in (small, large, key(Net()))}) == 3


def test_order_of_outputs_counts() -> None:
    """Exchanged, each answer would be the other's."""
    x = torch.ones(4)
    one = key(lambda x: (torch.relu(x), torch.tanh(x)), x)
    two = key(lambda x: (torch.tanh(x), torch.relu(x)), x)
    assert [item.part for item in differences(one, two)] == ["structure"]
    assert key_digest(one) != key_digest(two)


@pytest.mark.parametrize(
    ("function", "value", "part"),
    [("flavour_version", "99.0", "version"), ("flavour_name", "tensorrt", "flavour")],
)
def test_another_tensorrt_is_another_key(
    base: dict[str, str], monkeypatch: pytest.MonkeyPatch, function: str, value: str, part: str
) -> None:
    """A plan loads only in the version that built it."""
    monkeypatch.setattr(build, function, lambda: value)
    other = key(Net())
    assert key_digest(other) != key_digest(base)
    assert [(item.part, item.there) for item in differences(base, other)] == [(part, value)]


def test_every_setting_of_the_builder_is_in_the_key(base: dict[str, str]) -> None:
    """A new setting that were left out would have engines taken for each other."""
    assert BuildSettings.__dataclass_fields__.keys() <= base.keys()


def test_parts_that_explain_decide_nothing(base: dict[str, str]) -> None:
    """An explanation in other words, in a later release, must not build everything again."""
    explaining = {name for name in base if "." in name}
    assert explaining == {
        f"network.{part}" for part in ("inputs", "structure", "weights", "outputs")
    }
    assert key_digest({**base, **dict.fromkeys(explaining, "")}) == key_digest(base)
    for name in base.keys() - explaining:
        assert key_digest({**base, name: "another"}) != key_digest(base)


class Renamed(nn.Module):
    """`Net` with other names, in other modules, registered and written in another order."""

    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.tail = nn.ModuleDict({"norm": net.norm})
        self.body = nn.Sequential(net.first, net.second)
        self.last = net.third

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = F.leaky_relu(self.body(image), 0.1)
        return self.tail["norm"](self.last(features))  # type: ignore[no-any-return]


def test_names_and_order_of_modules_change_no_part(base: dict[str, str]) -> None:
    """A refactoring that changes no number would build every engine again."""
    assert key(Renamed()) == base


def test_order_of_a_dictionary_changes_no_part() -> None:
    """Checkpoints are loaded, and batches made, in whatever order."""

    class Summed(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["a"] * 2 + torch.relu(batch["b"])

    def of(names: str) -> dict[str, str]:
        values = {"a": torch.ones(2, 4), "b": torch.ones(2, 1)}
        model = Model("model", Summed(), ({name: values[name] for name in names},))
        (found,) = keys_of_model(model, Options())
        return found

    assert of("ab") == of("ba")
    loaded = Net()
    loaded.load_state_dict(dict(reversed(Net().state_dict().items())))
    assert key(loaded) == key(Net())


def test_the_device_of_the_example_changes_no_part() -> None:
    """CI captures on a CPU, and production on a card, where PyTorch has other kernels and ops."""

    def model(
        x: torch.Tensor, kernel: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image = F.batch_norm(F.conv2d(x, kernel), scale, scale, scale, scale)
        q = image.flatten(2).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(q, q, q)
        return F.dropout(mixed, 0.1, training=False), F.max_pool2d(image, 2)

    def on(device: str) -> dict[str, str]:
        with FakeTensorMode():  # shapes of a card's tensors, with no card
            x, kernel = (torch.empty(*size, device=device) for size in ((1, 3, 8, 8), (4, 3, 3, 3)))
            return key(model, x, kernel, torch.empty(4, device=device))

    assert on("cuda") == on("cpu")


def test_all_ways_in_lead_to_one_entry(tmp_path: Path) -> None:
    """What ``singlecard build`` makes on a machine without a card, production must find."""
    options = {"targets": "sm89", "cache_dir": tmp_path}
    before = counters()
    compile_model(Net(), (X,), None, None, options, "eager", None)
    assert verify(Net(), (X,), options=options).built == 0
    with torch.inference_mode():
        runs = {"execution": "reference", **options}
        torch.compile(Net(), backend=compile_graph, options=runs)(X)
    (entry,) = Cache(tmp_path).entries()
    assert entry.digest == key_digest(key(Net())) and entry.manifest["key"] == key(Net())
    counted = counters() - before
    assert (counted.builds, counted.misses) == (1, 1)


SOURCE = Path(__file__).parents[1] / "cli" / "models_for_cli.py"


def test_another_process_file_and_folder_change_no_part(tmp_path: Path) -> None:
    """Hash seeds, file names and folders differ between machines."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other_name.py").write_text(SOURCE.read_text())
    command = ["cache", "explain", "other_name.py:small", "--json", "--cache-dir", "engines"]
    done = subprocess.run(
        [sys.executable, "-m", "singlecard", *command],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=os.environ | {"PYTHONHASHSEED": "11"},
    )
    assert done.returncode == 1, done.stderr
    (engine,) = json.loads(done.stdout)["engines"]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert engine["key"] == key(module, torch.ones(2, 8), targets="portable")


def lowered() -> Any:
    from singlecard.lowering.lower import Lowered
    from singlecard.network.net import Net as Network

    net = Network()
    x = net.input("input_0", torch.float32, (4, 4))
    net.mark_output(net.unary("EXP", x), "output_0")
    return Lowered(net, (), (), {}, {}, {})


def test_looking_for_an_engine_builds_none(tmp_path: Path) -> None:
    """``build="never"`` must not build, and must find what was built."""
    settings, cache = BuildSettings(("sm89",)), Cache(tmp_path)
    parts = build.key_parts(lowered(), settings)
    assert find_engine(parts, cache) is None and cache.entries() == []
    made = get_engine(lowered(), settings, cache)
    found = find_engine(parts, cache)
    assert found is not None and not found.built
    assert (found.digest, found.plan, found.report) == (made.digest, made.plan, made.report)
