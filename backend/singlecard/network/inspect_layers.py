"""What there is to read on each layer class of TensorRT: the table that layer inspection follows.

A field that changes what a layer computes and is missing here would be missing in the digest of
the network too, and the cache would then hand out an engine of another network. So every property
of every layer class stands below, be it read or left out, and a test compares the table with the
installed TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class LayerFields:
    """The properties of one layer class, by what is done with them.

    Attributes:
        class_name: the class that a layer of this kind really has.
        attributes: plain values, read into the attributes of the view.
        weights: arrays, read as views of their memory.
        owner: the loop, conditional or attention that a boundary layer belongs to.
        left_out: what is not read, since another field or an input of the layer already tells it.
        by_input: attributes that an input takes the place of, with the index of that input. While
            it is given they mean nothing, and asking for some of them writes an error to the log.
        opaque: TensorRT does not let the whole meaning of such a layer be read back.
    """

    class_name: str
    attributes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    owner: str | None = None
    left_out: tuple[str, ...] = ()
    by_input: tuple[tuple[str, int], ...] = ()
    opaque: bool = False


#: ``padding_nd`` repeats ``pre_padding``.
_WINDOW = ("padding_mode", "pre_padding", "post_padding", "stride_nd")
_KERNEL = ("kernel_size_nd", "dilation_nd", "num_groups", "num_output_maps", *_WINDOW)
_KERNEL_WEIGHTS = ("kernel", "bias")

#: By the name of the layer's ``LayerType``.
LAYER_FIELDS: Mapping[str, LayerFields] = MappingProxyType(
    {
        "ACTIVATION": LayerFields("IActivationLayer", ("type", "alpha", "beta")),
        "ASSERTION": LayerFields("IAssertionLayer", ("message",)),
        "ATTENTION_INPUT": LayerFields("IAttentionInputLayer", owner="attention"),
        "ATTENTION_OUTPUT": LayerFields("IAttentionOutputLayer", owner="attention"),
        "CAST": LayerFields("ICastLayer", ("to_type",)),
        "CONCATENATION": LayerFields("IConcatenationLayer", ("axis",)),
        "CONDITION": LayerFields("IConditionLayer", owner="conditional"),
        "CONDITIONAL_INPUT": LayerFields("IIfConditionalInputLayer", owner="conditional"),
        "CONDITIONAL_OUTPUT": LayerFields("IIfConditionalOutputLayer", owner="conditional"),
        "CONSTANT": LayerFields("IConstantLayer", ("shape",), ("weights",)),
        "CONVOLUTION": LayerFields(
            "IConvolutionLayer", _KERNEL, _KERNEL_WEIGHTS, left_out=("padding_nd",)
        ),
        "CUMULATIVE": LayerFields("ICumulativeLayer", ("op", "exclusive", "reverse")),
        "DECONVOLUTION": LayerFields(
            "IDeconvolutionLayer", _KERNEL, _KERNEL_WEIGHTS, left_out=("padding_nd",)
        ),
        "DEQUANTIZE": LayerFields("IDequantizeLayer", ("axis", "block_shape", "to_type")),
        # The collective, its reduction and its root have no getter.
        "DIST_COLLECTIVE": LayerFields("IDistCollectiveLayer", ("num_ranks",), opaque=True),
        "DYNAMIC_QUANTIZE": LayerFields(
            "IDynamicQuantizeLayer",
            ("axis", "block_shape", "block_size", "scale_type", "to_type"),
        ),
        "EINSUM": LayerFields("IEinsumLayer", ("equation",)),
        "ELEMENTWISE": LayerFields("IElementWiseLayer", ("op",)),
        "FILL": LayerFields(
            "IFillLayer",
            ("operation", "shape", "alpha", "beta", "is_alpha_beta_int64", "to_type"),
            by_input=(("shape", 0), ("alpha", 1), ("beta", 2), ("is_alpha_beta_int64", 1)),
        ),
        "GATHER": LayerFields("IGatherLayer", ("axis", "mode", "num_elementwise_dims")),
        "GRID_SAMPLE": LayerFields(
            "IGridSampleLayer", ("align_corners", "interpolation_mode", "sample_mode")
        ),
        "IDENTITY": LayerFields("IIdentityLayer"),
        "ITERATOR": LayerFields("IIteratorLayer", ("axis", "reverse"), owner="loop"),
        # The lengths are an input of the layer.
        "KV_CACHE_UPDATE": LayerFields(
            "IKVCacheUpdateLayer", ("cache_mode", "update_form"), left_out=("update_lengths",)
        ),
        "LOOP_OUTPUT": LayerFields("ILoopOutputLayer", ("kind", "axis"), owner="loop"),
        "LRN": LayerFields("ILRNLayer", ("window_size", "alpha", "beta", "k")),
        "MATRIX_MULTIPLY": LayerFields("IMatrixMultiplyLayer", ("op0", "op1")),
        # The setters take tensors, which are inputs of the layer, and the values read here.
        "MOE": LayerFields(
            "IMoELayer",
            (
                "activation_type",
                "dyn_q_output_scale_type",
                "quantization_block_shape",
                "quantization_to_type",
                "swiglu_param_alpha",
                "swiglu_param_beta",
                "swiglu_param_limit",
            ),
            left_out=(
                "set_gated_biases",
                "set_gated_weights",
                "set_quantization_dynamic_dbl_q",
                "set_quantization_static",
                "set_swiglu_params",
            ),
        ),
        "NMS": LayerFields("INMSLayer", ("bounding_box_format", "indices_type", "topk_box_limit")),
        "NON_ZERO": LayerFields("INonZeroLayer", ("indices_type",)),
        "NORMALIZATION": LayerFields(
            "INormalizationLayer", ("axes", "epsilon", "num_groups", "is_v2", "compute_precision")
        ),
        "ONE_HOT": LayerFields("IOneHotLayer", ("axis",)),
        "PADDING": LayerFields("IPaddingLayer", ("pre_padding_nd", "post_padding_nd")),
        "PARAMETRIC_RELU": LayerFields("IParametricReLULayer"),
        # A plugin's fields cannot be read back from the network.
        "PLUGIN": LayerFields("IPluginLayer", left_out=("plugin",), opaque=True),
        "PLUGIN_V2": LayerFields("IPluginV2Layer", left_out=("plugin",), opaque=True),
        "PLUGIN_V3": LayerFields("IPluginV3Layer", left_out=("plugin",), opaque=True),
        "POOLING": LayerFields(
            "IPoolingLayer",
            ("type", "window_size_nd", "average_count_excludes_padding", "blend_factor", *_WINDOW),
            left_out=("padding_nd",),
        ),
        "QUANTIZE": LayerFields("IQuantizeLayer", ("axis", "block_shape", "to_type")),
        "RAGGED_SOFTMAX": LayerFields("IRaggedSoftMaxLayer"),
        "RECURRENCE": LayerFields("IRecurrenceLayer", owner="loop"),
        "REDUCE": LayerFields("IReduceLayer", ("op", "axes", "keep_dims")),
        "RESIZE": LayerFields(
            "IResizeLayer",
            (
                "resize_mode",
                "shape",
                "scales",
                "coordinate_transformation",
                "selector_for_single_pixel",
                "nearest_rounding",
                "exclude_outside",
                "cubic_coeff",
            ),
            by_input=(("shape", 1), ("scales", 1)),
        ),
        "REVERSE_SEQUENCE": LayerFields("IReverseSequenceLayer", ("batch_axis", "sequence_axis")),
        "ROTARY_EMBEDDING": LayerFields(
            "IRotaryEmbeddingLayer", ("interleaved", "rotary_embedding_dim")
        ),
        "SCALE": LayerFields("IScaleLayer", ("mode", "channel_axis"), ("shift", "scale", "power")),
        "SCATTER": LayerFields("IScatterLayer", ("axis", "mode")),
        "SELECT": LayerFields("ISelectLayer"),
        "SHAPE": LayerFields("IShapeLayer"),
        "SHUFFLE": LayerFields(
            "IShuffleLayer",
            ("first_transpose", "reshape_dims", "second_transpose", "zero_is_placeholder"),
            by_input=(("reshape_dims", 1),),
        ),
        "SLICE": LayerFields(
            "ISliceLayer",
            ("start", "shape", "stride", "axes", "mode"),
            by_input=(("start", 1), ("shape", 2), ("stride", 3), ("axes", 5)),
        ),
        "SOFTMAX": LayerFields("ISoftMaxLayer", ("axes",)),
        "SQUEEZE": LayerFields("ISqueezeLayer"),
        "TOPK": LayerFields(
            "ITopKLayer", ("op", "k", "axes", "indices_type"), by_input=(("k", 1),)
        ),
        "TRIP_LIMIT": LayerFields("ITripLimitLayer", ("kind",), owner="loop"),
        "UNARY": LayerFields("IUnaryLayer", ("op",)),
        "UNSQUEEZE": LayerFields("IUnsqueezeLayer"),
    }
)

#: What an ``IAttention`` holds, read into the attributes of its input layer. Its mask, its
#: quantization scale and its lengths are inputs of that layer.
ATTENTION_FIELDS = LayerFields(
    "IAttention",
    (
        "norm_op",
        "causal",
        "causal_kind",
        "decomposable",
        "normalization_quantize_to_type",
        "query_form",
        "key_value_form",
        "num_ranks",
    ),
    left_out=(
        "mask",
        "normalization_quantize_scale",
        "query_lengths",
        "key_value_lengths",
        "name",
        "metadata",
        "num_inputs",
        "num_outputs",
        "get_input",
        "get_output",
        "set_input",
    ),
)

#: Shared by all layers: names, wiring and notes, which the view holds in other places or which
#: change nothing. ``num_ranks`` is above 1 only where a collective is.
LEFT_OUT_EVERYWHERE = frozenset(
    {
        "get_input",
        "get_output",
        "get_output_type",
        "metadata",
        "name",
        "num_inputs",
        "num_outputs",
        "num_ranks",
        "set_input",
        "type",
    }
)
