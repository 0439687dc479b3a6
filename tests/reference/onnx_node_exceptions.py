"""Tests of ONNX whose expected answers are not those of the network that TensorRT's parser makes.

The evaluator does what the network says; each sentence is why that is not what ONNX expects. All
were seen with TensorRT-RTX 1.7.1.116 and onnx 1.23.
"""

from __future__ import annotations

_LENGTHS = "The parser drops the input nonpad_kv_seqlen of Attention without a word."
_WINDOW = "The parser drops the window attributes of Attention without a word."
_LAYOUT = "The parser drops layout = 1 and reads the batch as the sequence."
_UNSIGNED = "The parser makes UINT8 quantization INT8, whose range and output type are signed."
_CEIL = "TensorRT rounds the size up even if the last window lies in the padding alone."
_CORNERS = "TensorRT aligns the corners of the whole output, ONNX those of a fractional size."
_TRILU = "The parser takes upper = 0 for the default of Trilu, where ONNX has 1."

EXCEPTIONS: dict[str, str] = {
    "test_attention_4d_causal_nonpad_batch_prefill": _LENGTHS,
    "test_attention_4d_causal_nonpad_continued_prefill": _LENGTHS,
    "test_attention_4d_causal_nonpad_negative_offset_structural_empty": _LENGTHS,
    "test_attention_4d_gqa_causal_nonpad_decode": _LENGTHS,
    "test_attention_4d_gqa_causal_nonpad_decode_fp16": _LENGTHS,
    "test_attention_bidirectional_window": _WINDOW,
    "test_attention_local_window": _WINDOW,
    "test_averagepool_2d_ceil_last_window_starts_on_pad": _CEIL,
    "test_gru_batchwise": _LAYOUT,
    "test_lstm_batchwise": _LAYOUT,
    "test_maxpool_2d_ceil_output_size_reduce_by_one": _CEIL,
    "test_nonmaxsuppression_two_classes": (
        "TensorRT sorts the boxes of a batch by score, ONNX by class and then by score."
    ),
    "test_quantizelinear": _UNSIGNED,
    "test_quantizelinear_axis": _UNSIGNED,
    "test_quantizelinear_blocked_asymmetric": _UNSIGNED,
    "test_resize_downsample_scales_cubic_align_corners": _CORNERS,
    "test_resize_downsample_scales_linear_align_corners": _CORNERS,
    "test_simple_rnn_batchwise": _LAYOUT,
    "test_spacetodepth_crd_mode_example": "The parser drops mode = CRD of SpaceToDepth.",
    "test_triu": _TRILU,
    "test_triu_neg": _TRILU,
    "test_triu_one_row": _TRILU,
    "test_triu_out_neg_out": _TRILU,
    "test_triu_out_pos": _TRILU,
    "test_triu_pos": _TRILU,
    "test_triu_square": _TRILU,
    "test_triu_square_neg": _TRILU,
}
