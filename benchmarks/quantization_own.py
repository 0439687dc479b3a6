"""What the quantization benchmark measures of singlecard itself; `quantization.py` runs it.

Answers are those of the reference evaluator: the network's own arithmetic, FP16 rounding included,
as PyTorch ops. No engine runs. Plans are really built, for `TARGET`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from quantization_data import sentences
from quantization_goals import DEFAULT
from quantization_peers import CASES, Batch, Batches
from threshold_agreement import TOLERANCE, compare
from torch import Tensor, nn

import singlecard
from singlecard import CalibrationTable

TARGET = "sm89"

Row = dict[str, Any]

#: Sentences that `search_precision` gets, one a call; others that its answer is tried on.
SEARCHED, UNSEEN = 128, 48

#: The last of them, by which the search judges.
JUDGED = 16

AUTO_TOLERANCE = 0.01

METHODS = ("min-max", "entropy", "percentile", "mse")


@dataclass(frozen=True)
class Form:
    """One way to quantize with singlecard.

    Attributes:
        name: for the page.
        kind: precision of every op that can have it; the rest is FP16.
        calibration: arguments of ``singlecard.calibrate``.
        placed: leave in FP16 what the plan does not reward, as ``precision="int8"`` does.
        plans: read the plans of the first batch.
        residuals: round the operands of additions too, where a product reads them rounded.
    """

    name: str
    kind: str
    calibration: dict[str, Any] = field(default_factory=dict)
    placed: bool = False
    plans: bool = True
    residuals: bool = True


FORMS = (
    Form("FP16", "fp16"),
    Form(DEFAULT, "int8"),
    *(
        Form(DEFAULT, "int8", {"method": method}, plans=False)
        for method in METHODS
        if method != "min-max"
    ),
    Form("INT8 everywhere, no smoothing", "int8", {"smoothing": None}),
    Form("INT8 everywhere but residual operands", "int8", residuals=False),
    Form("INT8 as placed", "int8", placed=True),
    Form("FP8 everywhere", "fp8"),
    Form("INT8 weights", "int8-weight", {"weights": "int8"}),
    Form("INT4 weights", "int4-weight", {"weights": "int4"}),
)


def measure_case(name: str) -> Iterator[Row]:
    """Yield a row for each of `FORMS`, of a model that the peers get too; failures are told."""
    case = CASES[name]()
    expected = case.expected()
    tables: dict[str, CalibrationTable] = {}
    for form in FORMS:
        row: Row = {
            "model": name,
            "peer": "singlecard",
            "method": form.calibration.get("method", "min-max"),
            "form": form.name,
        }
        start = time.perf_counter()
        try:
            key = repr(sorted(form.calibration.items()))
            if key not in tables:
                calls = [((), dict(batch)) for batch in case.calibration]
                tables[key] = singlecard.calibrate(case.model, calls, **form.calibration)
                row["calibration_seconds"] = time.perf_counter() - start
            got, plan = quantized(case.model, tables[key], form, case.evaluation)
        except Exception as error:  # as of the peers, whatever is raised is its result
            yield row | {"error": f"{type(error).__name__}: {error}"}
            continue
        yield row | plan | case.judge(expected, got) | {"seconds": time.perf_counter() - start}


def quantized(
    model: nn.Module, table: CalibrationTable, form: Form, batches: Batches
) -> tuple[Tensor, Row]:
    """Return the answers to all batches, and the plan's figures for the first of them."""
    plan: Row = {}
    table = dataclasses.replace(table, assignment=assigned(table, form.kind))
    if not form.residuals:
        kept = {name: "fp16" for name in table.assignment if ":residual" in name}
        table = dataclasses.replace(table, assignment={**table.assignment, **kept})
    if form.placed:
        bare = dataclasses.replace(table, assignment={})
        plan = plan_figures(model, batches[0], form.kind, bare)
        # A table that assigns nothing is no table for "auto".
        placed = plan["assignment"] or assigned(table, "fp16")
        table = dataclasses.replace(table, assignment=placed)
    elif form.plans:
        plan = plan_figures(model, batches[0], "auto", table)
    assignment = plan.pop("assignment", {})
    if plan:
        plan["quantized"], plan["points"] = len(assignment), len(assigned(table, form.kind))
    call = compiled(model, table, dynamic=False)
    with torch.inference_mode():
        return torch.cat([call(**batch) for batch in batches]), plan


def assigned(table: CalibrationTable, kind: str) -> dict[str, str]:
    """Return a precision for every op of a table; what cannot have it stays in FP16."""
    return {name: kind for graph in table.graphs for name in graph}


def compiled(model: nn.Module, table: CalibrationTable, **more: Any) -> Callable[..., Tensor]:
    """Return the model as the reference evaluator computes it with a table's assignment."""
    torch._dynamo.reset()
    options = {
        "precision": "auto",
        "calibration": table,
        "targets": TARGET,
        "execution": "reference",
    }
    call: Callable[..., Tensor] = torch.compile(
        model, backend="singlecard", options=options, **more
    )

    def evaluate(*args: Any, **kwargs: Any) -> Tensor:
        before = singlecard.counters().evaluations
        answer = call(*args, **kwargs)
        assert singlecard.counters().evaluations > before, "PyTorch answered for the network"
        return answer

    return evaluate


def plan_figures(
    model: nn.Module, batch: Batch, precision: str, table: CalibrationTable | None = None
) -> Row:
    """Return what is quantized, bytes moved and weights of the plan, and kernels."""
    torch._dynamo.reset()
    options: dict[str, Any] = {"precision": precision, "targets": TARGET}
    if table is not None:
        options["calibration"] = table
    report = singlecard.verify(model, (), batch, options=options)
    assignment: dict[str, str] = {}
    reasons: Counter[str] = Counter()
    for placement in report.placements:
        assignment |= placement.assignment
        reasons.update(item.reason for item in placement.decisions if item.reason)
    return {
        "assignment": assignment,
        "reasons": dict(reasons.most_common(3)),
        "left_to_pytorch": len(report.fallback),
        "relative_l2_of_first_batch": report.relative_l2,
        "kernels": sum(plan.kernel_count for plan in report.plans),
        "bytes_moved": sum(plan.bytes_moved or 0 for plan in report.plans),
        "weights_bytes": sum(plan.weights_bytes for plan in report.plans),
    }


def measure_decoder() -> Iterator[Row]:
    """Yield a row for each precision of a Llama-style decoder's weights, seeded and random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32_000,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        prompt = {"input_ids": torch.randint(1, config.vocab_size, (1, 16))}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for precision in ("fp16", "int8-weight", "int4-weight"):
        start = time.perf_counter()
        row: Row = {"precision": precision, "parameters": parameters}
        try:
            figures = plan_figures(model, prompt, precision)
        except singlecard.SinglecardError as error:
            yield row | {"error": f"{type(error).__name__}: {error}"}
            continue
        figures["quantized"] = len(figures.pop("assignment"))
        yield row | figures | {"seconds": time.perf_counter() - start}


def measure_auto() -> Iterator[Row]:
    """Yield a row of `singlecard.search_precision` for MiniLM, without and with GPTQ's rounding."""
    known, unseen = sentences()
    calls, others = one_by_one(known[:SEARCHED]), one_by_one(unseen[:UNSEEN])
    for rounded in (False, True):
        model = examples().SentenceEncoder().eval()
        original = copy.deepcopy(model)
        torch._dynamo.reset()
        start = time.perf_counter()
        found = singlecard.search_precision(
            model,
            [((), call) for call in calls],
            tolerance=AUTO_TOLERANCE,
            targets=TARGET,
            evaluation=JUDGED,
            round_weights=rounded,
        )
        seconds = time.perf_counter() - start
        call = compiled(model, found.table, dynamic=False)
        with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=UNSEEN):
            errors = [distance(original(**other), call(**other)) for other in others]
        yield {
            "round_weights": rounded,
            "seconds": seconds,
            "tokens_of_first": calls[-JUDGED]["input_ids"].shape[1],
            "tolerance": found.tolerance,
            "error": found.error,
            "unseen_error": sum(errors) / len(errors),
            "unseen_worst": max(errors),
            "fp16_bytes": found.fp16_bytes,
            "bytes_moved": found.bytes_moved,
            "assigned": dict(Counter(found.assignment.values())),
            "points": len(assigned(found.table, "int8")),
        }


def one_by_one(texts: Sequence[str]) -> list[Batch]:
    """Return the inputs of MiniLM for each sentence alone, unpadded."""
    minilm_inputs = examples().minilm_inputs
    batches = []
    for text in texts:
        batch = minilm_inputs((text,), 128)
        length = int(batch["attention_mask"].sum())
        batches.append({name: values[:, :length].clone() for name, values in batch.items()})
    return batches


def examples() -> ModuleType:
    """Return the module of the project's example models."""
    sys.path.append(str(Path(__file__).parent.parent / "examples"))
    return importlib.import_module("models")


def distance(expected: Tensor, got: Tensor) -> float:
    return float((expected.double() - got.double()).norm() / expected.double().norm())


def measure_thresholds() -> Iterator[Row]:
    """Yield a row for each distribution, method and peer of `threshold_agreement`."""
    for name, method, peer, theirs, own in compare():
        relative = abs(own - theirs) / theirs
        yield {
            "values": name,
            "method": method,
            "peer": peer,
            "theirs": theirs,
            "own": own,
            "relative": relative,
            "agrees": relative <= TOLERANCE,
        }
