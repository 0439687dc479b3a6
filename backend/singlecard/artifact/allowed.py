"""What a program in an artifact may call: a closed list, the same when writing and when reading.

An op must compute and do nothing else (`singlecard.capture.pure`), and be one that singlecard
lowers, or one of those below, which models have and PyTorch runs. An op of another library is
called only where whoever loads the file names it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection

import torch

from singlecard.capture.pure import SPACES, impurity, is_look
from singlecard.lowering.table import table

#: Ops that stay in PyTorch, by name, in all their overloads that compute and do nothing else.
_BY_HAND = frozenset(
    """
    _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d addbmm addcdiv addcmul addmm
    addmv addr affine_grid_generator alias_copy all allclose aminmax any arange argmax argmin
    argsort argwhere baddbmm batch_norm_elemt binary_cross_entropy bincount block_diag bmm
    bucketize cat _cdist_forward celu channel_shuffle cholesky cholesky_inverse cholesky_solve
    _cholesky_solve_helper clamp clone col2im combinations complex conj _conj_physical
    conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc convolution copysign
    count_nonzero cross _ctc_loss cummax cummin cumprod cumsum deg2rad diag_embed diagonal_copy
    digamma dist dot elu embedding _embedding_bag _embedding_bag_forward_only embedding_renorm
    empty empty_like empty_strided equal erfinv _euclidean_dist expand_copy eye
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    _fft_c2c _fft_c2r fft_fftfreq _fft_r2c fft_rfftfreq fill flip float_power fmax fmin frac
    fractional_max_pool2d fractional_max_pool3d frexp full full_like gather gcd geqrf glu
    grid_sampler_2d _grid_sampler_2d_cpu_fallback grid_sampler_3d hardshrink heaviside histc
    histogram _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors
    huber_loss hypot i0 igamma igammac im2col index index_add index_copy index_fill index_put
    index_reduce index_select _int_mm isclose isfinite isin isinf isnan isneginf isposinf
    kthvalue lcm ldexp lerp lgamma lift_fresh_copy linalg_cholesky_ex linalg_cross _linalg_det
    linalg_eig _linalg_eigh linalg_eigh _linalg_eigvals linalg_eigvals
    linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq
    linalg_lu linalg_lu_factor_ex linalg_lu_solve linalg_matrix_exp linalg_pinv linalg_qr
    _linalg_slogdet _linalg_solve_ex linalg_solve_triangular _linalg_svd linalg_vector_norm
    linspace _local_scalar_dense log_sigmoid_forward logaddexp logaddexp2 _logcumsumexp
    logcumsumexp logspace lu_unpack _lu_with_info masked_fill masked_scatter masked_select
    matmul max max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d mean
    median min mish mode mse_loss multi_margin_loss multilabel_margin_loss_forward mv mvlgamma
    nan_to_num nanmedian nansum native_batch_norm _native_batch_norm_legit
    native_channel_shuffle native_group_norm native_layer_norm native_norm new_empty
    new_empty_strided new_full new_ones new_zeros nextafter nll_loss2d_forward nll_loss_forward
    nonzero nonzero_static norm one_hot ones ones_like ormqr outer _pack_padded_sequence
    _pad_packed_sequence _pdist_forward pixel_shuffle pixel_unshuffle poisson_nll_loss polar
    polygamma prelu _prelu_kernel prod put quantile rad2deg reflection_pad1d reflection_pad2d
    reflection_pad3d renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape resolve_conj resolve_neg roll rot90 scalar_tensor scatter
    scatter_add scatter_reduce searchsorted segment_reduce select_scatter sgn sinc slice_scatter
    smooth_l1_loss soft_margin_loss softshrink sort _sparse_mm special_airy_ai special_bessel_j0
    special_bessel_j1 special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t
    special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w
    special_entr special_erfcx special_hermite_polynomial_h special_hermite_polynomial_he
    special_i0e special_i1 special_i1e special_laguerre_polynomial_l
    special_legendre_polynomial_p special_log_ndtr special_modified_bessel_i0
    special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
    special_ndtri special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
    special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w
    special_spherical_bessel_j0 special_xlog1py special_zeta square squeeze_copy std std_mean
    sum sym_numel sym_size sym_storage_offset sym_stride take _thnn_fused_gru_cell
    _thnn_fused_lstm_cell threshold _to_copy topk trace triangular_solve tril tril_indices
    _trilinear triu triu_indices unfold_copy _unique _unique2 unique_consecutive unique_dim
    unsafe_split unsafe_split_with_sizes upsample_bicubic2d _upsample_bicubic2d_aa
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view_as_complex
    view_as_complex_copy view_as_real view_as_real_copy _weight_norm_interface where xlogy zeros
    zeros_like
    """.split()
)

#: Ops of ours and of ``prims`` that capture makes.
_OUR_SPACES = ("singlecard", "prims")


def refusal_of_op(op: torch._ops.OpOverload, also: Collection[str] | None = ()) -> str:
    """Return why a file may not name an op, or ''.

    Args:
        op: the op.
        also: full names of ops of other libraries that whoever loads the file trusts; None: all of
            them, for whoever writes one has them in his own process.
    """
    if op.namespace in SPACES:
        return _own_refusal(op)
    if also is None or str(op) in also:
        return impurity(op)
    return "it is of another library"


@functools.cache
def _own_refusal(op: torch._ops.OpOverload) -> str:
    reason = impurity(op)
    if reason:
        return reason
    name = op._schema.name.partition("::")[2]
    if op in table() or is_look(op) or name in _BY_HAND or op.namespace in _OUR_SPACES:
        return ""
    return "it is not on the list of ops that files may name"
