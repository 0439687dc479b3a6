"""``singlecard calibrate``: run a model on data, and write the scales that INT8 needs."""

from __future__ import annotations

import argparse
import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from singlecard.checking import counted
from singlecard.commands.answer import Answer
from singlecard.commands.arguments import Parser, add_common, add_model
from singlecard.commands.quiet import quiet
from singlecard.errors import OptionError

if TYPE_CHECKING:
    from singlecard.precision.table import CalibrationTable

_ONE_CALL = "one call is little: give some tens with --data"


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "calibrate",
        help="run a model on data, and write the calibration table that int8 and fp8 need",
        description="Run a model in PyTorch on data, and write what quantization needs to know of "
        "it to a file, for --calibration of build, verify and explain. No GPU is needed.",
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        metavar="FUNCTION",
        help="path.py:function or package.module:function that returns an iterable of calls: "
        "tensors, tuples of arguments, or dictionaries of keyword arguments (default: the model's "
        "own example arguments, once)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the table to write, as JSON"
    )
    parser.add_argument(
        "--method",
        default="min-max",
        help="min-max (default), moving-average, percentile, entropy or mse",
    )
    parser.add_argument(
        "--percentile",
        type=float,
        default=99.99,
        metavar="SHARE",
        help="share of elements, in percent, that the percentile method holds (default: 99.99)",
    )
    parser.add_argument(
        "--smoothing",
        default="search",
        help="how much range goes from tensors to weights: search (default), none, or a number "
        "between 0 and 1",
    )
    parser.add_argument(
        "--weights", help="int8 or int4: look for what makes the error of such weights least"
    )
    parser.add_argument(
        "--no-bias-correction", action="store_true", help="leave the means of channels alone"
    )
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    out: Path = given.out
    if out.is_dir() or not out.parent.is_dir():
        raise OptionError(f"--out {out} is not valid: name a file in an existing folder")
    smoothing = _smoothing_from(given.smoothing)
    from singlecard.report.data import load_data
    from singlecard.report.model import load_model
    from singlecard.warning import SinglecardWarning
    from singlecard_calib.calibrate import calibrate
    from singlecard_calib.settings import Settings

    settings = {
        "method": given.method,
        "percentile": given.percentile,
        "smoothing": smoothing,
        "weights": given.weights,
        "bias_correction": not given.no_bias_correction,
    }
    Settings(**settings)  # what is not valid is told before the model is loaded
    # PyTorch logs the traceback of an error that it raises as well.
    with nullcontext() if given.debug else quiet("torch", logging.CRITICAL):
        model = load_model(given.model)
        data: Any = [(model.args, model.kwargs)] if given.data is None else load_data(given.data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SinglecardWarning)  # the answer has a remark
            table = calibrate(model.module, data, **settings)
    table.save(out)
    document = _document(given.model, table, out)
    return Answer(document, _shown(document))


def _smoothing_from(text: str) -> float | str | None:
    if text in ("none", "search"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError:
        raise OptionError(
            f"--smoothing {text} is not valid: it takes search, none, or a number between 0 and 1"
        ) from None


def _document(name: str, table: CalibrationTable, out: Path) -> dict[str, Any]:
    scales = table.tensors.values()
    return {
        "model": name,
        "table": str(out),
        "bytes": out.stat().st_size,
        "method": table.method,
        "percentile": table.percentile,
        "calls": table.samples,
        "graphs": len(table.graphs),
        "ops": len({op for graph in table.graphs for op in graph}),
        "tensors": len(table.tensors),
        "smoothed": sum(bool(scale.divisor) for scale in scales),
        "weights_smoothed": sum(bool(scale.weights_divisor) for scale in scales),
        "zero_tensors": list(table.missing),
        "beyond_fp16": list(table.keep_fp32),
    }


def _shown(document: dict[str, Any]) -> RenderableType:
    from singlecard.report.plan_rows import format_bytes
    from singlecard.report.tables import facts_table

    method, calls = document["method"], document["calls"]
    if document["percentile"] is not None:
        method = f"{method} {document['percentile']:g}"
    rows = [
        ("calls", str(calls), _ONE_CALL if calls == 1 else ""),
        ("method", method, ""),
        ("tensors", str(document["tensors"]), f"read by {counted(document['ops'], 'op')}"),
        ("smoothed", str(document["smoothed"]), "channel by channel, into the weights"),
    ]
    if document["weights_smoothed"]:
        rows.append(("", str(document["weights_smoothed"]), "where only weights are quantized"))
    if document["zero_tensors"]:
        rows.append(("always zero", str(len(document["zero_tensors"])), "their ops stay in FP16"))
    beyond = document["beyond_fp16"]
    rows.append(("beyond FP16's range", str(len(beyond)), _some(beyond)))
    rows.append(("table", document["table"], format_bytes(document["bytes"])))
    return facts_table(f"Calibration of {document['model']}", rows)


def _some(names: list[str]) -> str:
    """Return the first names of a list, which will compute in FP32."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}: they compute in FP32" if names else ""
