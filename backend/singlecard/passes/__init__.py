"""Rewrites of a Program that make it smaller and easier to fuse, and never change its meaning."""

from __future__ import annotations

from singlecard.capture.program import Program
from singlecard.passes.attention_bias import (
    drop_key_bias,
    move_query_bias,
    move_rest_of_value_bias,
    move_value_bias,
    push_bias_through_split,
)
from singlecard.passes.batch_norm import fold_batch_norm
from singlecard.passes.cache_update import name_cache_update
from singlecard.passes.channel_gain import gain_channels
from singlecard.passes.checking import Pass, run_passes
from singlecard.passes.common import merge_common
from singlecard.passes.constants import fold_constants
from singlecard.passes.dynamic_quantization import note_dynamic
from singlecard.passes.fused_attention import name_attention
from singlecard.passes.grouped_product import name_grouped_product
from singlecard.passes.grouped_query import share_key_heads
from singlecard.passes.high_rank import skip_high_rank, work_at_lower_rank
from singlecard.passes.known import (
    drop_empty_product,
    drop_empty_write,
    name_empty,
    name_fill,
)
from singlecard.passes.linear import share_factor, unflatten_product
from singlecard.passes.neutral import drop_neutral, drop_zero_bias
from singlecard.passes.noop import drop_copy, drop_identity, drop_restriding, merge_views
from singlecard.passes.quantized import (
    lift_dequantize,
    name_dequantize,
    name_simulated,
    round_constant,
)
from singlecard.passes.rms_norm import fuse_rms_norm
from singlecard.passes.rotary import fuse_rotary, rotate_together
from singlecard.passes.row_writes import name_row_writes
from singlecard.passes.rule import ROUNDED, Rule
from singlecard.passes.visible_rows import note_visible_rows
from singlecard.passes.weight_codes import (
    join_bias,
    name_packed_product,
    name_scaled_product,
    name_weight_codes,
)

__all__ = ["FIRST", "PASSES", "SECOND", "simplify"]

#: Rules that name and join what PyTorch took apart.
FIRST: tuple[Rule, ...] = (
    drop_empty_write,
    drop_empty_product,
    name_fill,
    drop_restriding,
    drop_copy,
    name_row_writes,
    lift_dequantize,
    name_dequantize,
    name_simulated,
    round_constant,
    note_dynamic,
    name_packed_product,
    name_scaled_product,
    name_weight_codes,
    name_grouped_product,
    name_attention,
    fold_batch_norm,
    unflatten_product,
    share_factor,
    work_at_lower_rank,
    skip_high_rank,
    drop_identity,
    merge_views,
    join_bias,
    fuse_rms_norm,
    share_key_heads,
)

#: Rules that ask for constants' values: masks are known once constants are folded.
SECOND: tuple[Rule, ...] = (
    note_visible_rows,
    push_bias_through_split,
    drop_key_bias,
    move_query_bias,
    move_value_bias,
    move_rest_of_value_bias,
    drop_zero_bias,
    drop_neutral,
    fuse_rotary,
    rotate_together,
    name_cache_update,
    gain_channels,
)


def _drop_dead(program: Program) -> None:
    program.drop_dead()


#: What makes a Program small, in order.
PASSES: tuple[Pass, ...] = (
    Pass("drop_dead", _drop_dead),
    Pass("name_empty", name_empty),
    Pass.of_rules("FIRST", FIRST),
    Pass("fold_constants", fold_constants, exactness=ROUNDED),
    Pass.of_rules("SECOND", SECOND),
    Pass("merge_common", merge_common),
    Pass("drop_dead", _drop_dead),
    Pass.of_rules("LAST", (drop_identity,)),
)


def simplify(program: Program) -> Program:
    """Run every pass, in place, and return the Program.

    With ``SINGLECARD_CHECK=passes`` in the environment, the Program is run in PyTorch on sample
    inputs before and after each pass. That takes several times as long as the passes.

    Raises:
        RewriteError: only then: a pass changed an answer.
        OptionError: ``SINGLECARD_CHECK`` asks for something else.
    """
    run_passes(program, PASSES)
    return program
