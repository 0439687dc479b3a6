"""INT8, FP8 and INT4 through the whole backend: what the plans really do."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

import singlecard
from singlecard import choosing
from singlecard.placement import Placement


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


class Residual(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class Encoder(nn.Module):
    """An encoder layer: projections that share an input, attention, norms, a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = (part(x) for part in (self.query, self.key, self.value))
        q, k, v = (part.view(batch, length, 4, -1).transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = self.first(x + self.out(seen.reshape(batch, length, width)))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "wide layers": (
        lambda: nn.Sequential(nn.Linear(2048, 4096), nn.GELU(), nn.Linear(4096, 2048)),
        (16, 2048),
    ),
    "narrow layers": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)),
        (4, 32),
    ),
    "large maps of few channels": (lambda: Residual(16), (1, 16, 64, 64)),
    "small maps of many channels": (
        lambda: Residual(256),
        (1, 256, 7, 7),
    ),
    "encoder": (lambda: Encoder(256), (2, 64, 256)),
}


def calibrated(name: str) -> tuple[nn.Module, torch.Tensor, Any]:
    make, shape = MODELS[name]
    model = seeded(make)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return model, x, singlecard.calibrate(model, [x, 0.7 * x])


def one(placements: tuple[Placement, ...]) -> Placement:
    (placement,) = placements
    return placement


@pytest.mark.parametrize("name", MODELS)
def test_int8_is_never_slower_than_fp16(name: str) -> None:
    """Whoever asks for INT8 must not get a slower engine, by the plan's own count, on any card."""
    model, x, table = calibrated(name)
    options = {"precision": "int8", "calibration": table, "targets": "sm89"}
    report = singlecard.verify(model, (x,), options=options)
    placement = one(report.placements)
    assert placement.before is not None and placement.after is not None
    assert not placement.after.is_slower_than(placement.before)
    assert report.plans[0].kernel_count == placement.after.kernels
    assert report.plans[0].bytes_moved == placement.after.bytes_moved
    assert report.relative_l2 < 0.05
    for decision in placement.decisions:
        assert decision.taken == "int8" or decision.reason


def test_trials_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds all weights once more, and none is garbage that waits for a collector: it rests
    while a model is placed, and a model of 135 M parameters took 24 GB. So it is with the two that
    only tell the digest."""
    widths = (128, 256, 192, 320, 128)
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(8, 128)
    table = singlecard.calibrate(model, [x, 2 * x])
    made: list[weakref.ref[Any]] = []
    found: list[int] = []
    nodes: list[int] = []
    make, report = choosing.lower, choosing.trial_report

    def lower(*args: Any, **settings: Any) -> Any:
        lowered = make(*args, **settings)
        constants = [getattr(args[0].module, name) for name in args[0].module._buffers]
        own = [item.untyped_storage() for item in constants if item.nbytes > 1 << 15]
        made.extend(map(weakref.ref, (args[0], lowered, lowered.net, *own)))
        assert own and not gc.isenabled()
        return lowered

    def counted(*args: Any) -> Any:
        found.append(sum(item() is not None for item in made))
        nodes.append(sum(type(item) is fx.Node for item in gc.get_objects()))
        return report(*args)

    monkeypatch.setattr(choosing, "lower", lower)
    monkeypatch.setattr(choosing, "trial_report", counted)
    monkeypatch.setattr(choosing, "TRIALS", 6)
    with torch.no_grad():
        options = {"precision": "int8", "calibration": table, "targets": "sm89"}
        torch.compile(model, backend="singlecard", options={**options, "execution": "eager"})(x)
    assert len(found) == 6
    assert max(found) < 8, "of one trial, however many were before it"
    assert max(nodes) - min(nodes) < 100, "nor does the graph of a trial wait"


def test_a_trial_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What glibc keeps of a trial's temporary memory was 1.4 GB for a model of 0.5 GB."""
    model, x, table = calibrated("narrow layers")
    built: list[int] = []
    given: list[int] = []
    report, free = choosing.trial_report, choosing.free_unused

    def counted(*args: Any) -> Any:
        built.append(len(given))
        return report(*args)

    def noted() -> None:
        given.append(len(built))
        free()

    monkeypatch.setattr(choosing, "trial_report", counted)
    monkeypatch.setattr(choosing, "free_unused", noted)
    singlecard.verify(model, (x,), options={"precision": "int8", "calibration": table})
    assert len(built) > 1 and given[-len(built) :] == list(range(1, len(built) + 1))


def test_int8_is_taken_where_it_pays() -> None:
    """A rule that always leaves everything in FP16 would never be slower either."""
    for name in ("wide layers", "small maps of many channels"):
        model, x, table = calibrated(name)
        options = {"precision": "int8", "calibration": table, "targets": "sm89"}
        report = singlecard.verify(model, (x,), options=options)
        assert len(one(report.placements).assignment) >= 2, name
        assert report.plans[0].arithmetic_by_type.get("Int8", 0) >= 2, name
        before = one(report.placements).before
        assert before is not None and before.bytes_moved is not None
        assert (report.plans[0].bytes_moved or 0) < 0.65 * before.bytes_moved, name


def test_explain_says_why_an_op_stays_in_fp16() -> None:
    """INT8 that does not come must not be silent."""
    model, x, table = calibrated("large maps of few channels")
    options = {"precision": "int8", "calibration": table, "targets": "sm89"}
    found = singlecard.explain(model, (x,), options=options)
    reasons = [item.reason for item in one(found.placements).decisions if item.taken == "fp16"]
    assert reasons and all(reasons)
    assert "Quantization" in str(found) and "int8" in found.html()
    assert found.to_dict()["quantization"][0]["decisions"]


def test_an_excluded_module_is_not_quantized() -> None:
    """What a user keeps in PyTorch stays in its own precision."""
    model, x, table = calibrated("wide layers")
    options = {
        "precision": "int8",
        "calibration": table,
        "targets": "sm89",
        "exclude_modules": ["2"],
        "min_block_size": 1,
    }
    report = singlecard.verify(model, (x,), options=options)
    (left,) = [item for item in one(report.placements).decisions if item.name == "2:linear"]
    assert left.taken == "fp32" and "stays in PyTorch" in left.reason


def test_dynamic_sizes_are_placed_at_the_usual_sizes() -> None:
    """One engine for all batch sizes must have INT8 too, and right answers at both ends."""
    model, x, table = calibrated("wide layers")
    options = {
        "precision": "int8",
        "calibration": table,
        "targets": "sm89",
        "execution": "reference",
    }
    compiled = torch.compile(model, backend="singlecard", options=options, dynamic=True)
    with torch.no_grad():
        for size in (2, 5, 16):
            got, want = compiled(x[:size]), model(x[:size])
            assert float((got - want).norm() / want.norm()) < 0.03, size
    report = singlecard.verify(
        model, (x,), dynamic_shapes=({0: (1, 64)},), options={**options, "execution": "auto"}
    )
    assert one(report.placements).assignment
    assert report.plans[0].arithmetic_by_type.get("Int8")


@pytest.mark.parametrize(("precision", "most"), [("int8-weight", 0.56), ("int4-weight", 0.30)])
def test_weights_take_less_memory(precision: str, most: float) -> None:
    """A model that does not fit is why people store weights in fewer bits."""
    model = seeded(
        lambda: nn.Sequential(nn.Embedding(512, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 512))
    )
    ids = torch.arange(16)[None]
    sizes = {}
    for chosen in ("fp16", precision):
        report = singlecard.verify(model, (ids,), options={"precision": chosen, "targets": "sm89"})
        assert report.coverage == 1.0
        sizes[chosen] = report.plans[0].weights_bytes
        assert report.relative_l2 < (0.2 if chosen == "int4-weight" else 0.02)
    assert sizes[precision] <= most * sizes["fp16"]


def test_a_type_that_the_card_lacks_is_refused() -> None:
    """FP8 on Ampere, INT4 on Turing: a clear error instead of an engine that fails on the card."""
    model, x, table = calibrated("narrow layers")
    with pytest.raises(singlecard.TargetError, match="fp8"):
        options = {"precision": "fp8", "calibration": table, "targets": "sm86"}
        singlecard.verify(model, (x,), options=options)
    with pytest.raises(singlecard.TargetError, match="int4"):
        singlecard.verify(model, (x,), options={"precision": "int4-weight", "targets": "sm75"})


def test_fp8_multiplies_in_fp8() -> None:
    """FP8 that is dequantized first would cost accuracy for nothing."""
    model, x, table = calibrated("wide layers")
    options = {"precision": "fp8", "calibration": table, "targets": "sm89"}
    report = singlecard.verify(model, (x,), options=options)
    assert report.plans[0].arithmetic_by_type.get("FP8") == 2
    assert report.relative_l2 < 0.06


def test_convolutions_are_not_simulated_on_turing() -> None:
    """On SM75 the plan reads dequantized convolutions: INT8 in name only, and told as such."""
    model, x, table = calibrated("small maps of many channels")
    options = {"precision": "int8", "calibration": table, "targets": "sm75"}
    report = singlecard.verify(model, (x,), options=options)
    assert "Int8" not in report.plans[0].arithmetic_by_type
    assert not one(report.placements).assignment


def test_what_was_decided_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A second start must not build all trials again, nor decide otherwise."""
    model, x, table = calibrated("wide layers")
    given = {"precision": "int8", "calibration": table, "targets": "sm89", "cache_dir": tmp_path}
    first = singlecard.verify(model, (x,), options=given)

    def built(*args: Any) -> None:
        raise AssertionError("a trial was built again")

    monkeypatch.setattr("singlecard.choosing.trial_report", built)
    second = singlecard.verify(model, (x,), options=given)
    assert second.placements == first.placements
    (memory,) = tmp_path.rglob("*.memory.*")
    memory.write_text(memory.read_text()[:-40])
    with pytest.raises(Exception, match="built again"):  # damaged: made again, not used
        singlecard.verify(model, (x,), options={**given, "strict": True})


def test_fp16_refuses_the_table_of_another_model() -> None:
    """Ops that another model must keep in FP32 say nothing of this one."""
    _, _, table = calibrated("wide layers")
    model, x, _ = calibrated("narrow layers")
    with pytest.raises(singlecard.CalibrationError, match="another model"):
        singlecard.verify(model, (x,), options={"precision": "fp16", "calibration": table})


def test_an_op_kept_in_fp32_is_not_quantized() -> None:
    """Its values leave FP16's range: codes would be multiplied in FP16 all the same."""
    model, x, _ = calibrated("narrow layers")
    options = {"precision": "int8-weight", "targets": "sm89", "keep_fp32": ["2"]}
    report = singlecard.verify(model, (x,), options=options)
    (left,) = [item for item in one(report.placements).decisions if item.name == "2:linear"]
    assert left.taken == "fp32" and "FP32" in left.reason


def test_sparse_weights_are_part_of_the_key() -> None:
    """An engine built without the flag must not be taken for one with it."""
    model = seeded(lambda: nn.Linear(64, 64))
    x = torch.randn(4, 64)
    singlecard.prune(model, pattern="2:4")
    given = {"precision": "fp16", "targets": "sm89"}
    first = singlecard.explain(model, (x,), options=given)
    second = singlecard.explain(model, (x,), options={**given, "sparse_weights": True})
    assert first.engines[0].digest != second.engines[0].digest
