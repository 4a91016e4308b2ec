"""The operators that a TorchScript file may contain: arithmetic on tensors, numbers, lists, dictionaries and texts.

None of them reads or writes files, starts processes, waits, prints, or calls Python. Operators
that are missing in this list are rejected, also those of later versions of torch and of other packages.
"""

from featgan.errors import UserError

TENSOR_OPERATORS = """
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint affine_grid_generator
    alias all allclose alpha_dropout amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2
    arctanh argmax argmin argsort argwhere as_strided as_tensor asin asinh atan atan2 atanh atleast_1d atleast_2d
    atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bernoulli bilinear bincount
    bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm
    broadcast_shapes broadcast_tensors broadcast_to bucketize can_cast cartesian_prod cat cdist ceil celu chain_matmul
    channel_shuffle chunk clamp clamp_max clamp_min clip clone col2im column_stack combinations complex concat
    concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d conv_transpose3d convolution copy copysign corrcoef cos cosh cosine_similarity count_nonzero cov
    cpu cross cuda cummax cummin cumprod cumsum data deg2rad dequantize detach det device diag diag_embed diagflat
    diagonal diff digamma dim dist div divide dot dropout dsplit dstack einsum element_size elu embedding
    empty empty_like empty_strided eq equal erf erfc erfinv exp exp2 expand expand_as expm1 exponential eye
    fake_quantize_per_channel_affine fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout fft_fft
    fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft
    fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fill_diagonal fix flatten flip fliplr flipud
    float_power floor floor_divide fmax fmin fmod frac frexp frobenius_norm full full_like gather
    ge gelu geometric get_device glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru
    gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside histc hsplit hstack hypot
    i0 im2col imag index index_add index_copy index_fill index_put index_select inner instance_norm inverse is_complex
    is_contiguous is_floating_point is_nonzero is_same_size is_signed isclose isfinite isin isinf isnan isneginf
    isposinf isreal istft item kron kthvalue layer_norm lcm ldexp le leaky_relu lerp less less_equal
    lgamma lift lift_fresh linalg_cross linalg_det linalg_eigh linalg_inv linalg_matmul linalg_matrix_norm linalg_norm
    linalg_qr linalg_solve linalg_svd linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2 log_normal
    log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor
    logit logspace logsumexp lstm lstm_cell lt mH mT masked_fill masked_scatter masked_select matmul matrix_exp
    matrix_power max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices maximum mean median meshgrid min minimum mish mm mode moveaxis
    movedim msort mul multinomial multiply mv nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy
    native_batch_norm native_channel_shuffle native_dropout native_group_norm native_layer_norm ne neg negative
    new_empty new_empty_strided new_full new_ones new_zeros nonzero nonzero_numpy norm normal not_equal nuclear_norm
    numel numpy_T one_hot ones ones_like outer pad pad_sequence pairwise_distance pdist permute pinverse pixel_shuffle
    pixel_unshuffle poisson polar positive pow prelu prod promote_types quantile rad2deg rand rand_like randint
    randint_like randn randn_like random randperm range ravel real reciprocal reflection_pad1d reflection_pad2d
    reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape reshape_as resolve_conj resolve_neg result_type rms_norm rnn_relu rnn_relu_cell rnn_tanh
    rnn_tanh_cell roll rot90 round row_stack rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter
    scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh size
    slice slice_scatter softmax softplus softshrink sort special_digamma special_entr special_erf special_erfc
    special_erfinv special_exp2 special_expit special_expm1 special_gammaln special_i0 special_i0e special_log1p
    special_log_softmax special_logit special_logsumexp special_ndtr special_psi special_round special_sinc
    special_softmax special_xlog1py special_xlogy split split_with_sizes sqrt square squeeze stack std std_mean stft
    storage_offset stride sub subtract sum sum_to_size swapaxes swapdims t take take_along_dim tan tanh tensor
    tensor_split tensordot thnn_conv2d threshold tile to topk trace transpose trapezoid trapz tril tril_indices triu
    triu_indices true_divide trunc type_as unbind unflatten unfold uniform unique_consecutive unique_dim unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view view_as
    view_as_complex view_as_real vsplit vstack where xlogy zero zeros zeros_like
    _adaptive_avg_pool2d _adaptive_avg_pool3d _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int
    _cast_Long _cast_Short _conv_depthwise2d _convolution _convolution_mode _dim_arange _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _native_multi_head_attention _pad_circular _pad_enum
    _safe_softmax _scaled_dot_product_attention_math _shape_as_tensor _softmax _stack _to_copy
    _transformer_encoder_layer_fwd _trilinear _unique2 _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface
    __interpolate __upsample __upsample_bilinear __upsample_nearest __and__ __or__ __xor__ __lshift__ __rshift__
"""
"""Operators `aten::NAME` on tensors. The form that changes its input, `aten::NAME_`, is allowed as well."""

VALUE_OPERATORS = """
    Bool Complex ComplexImplicit Delete Float FloatImplicit Int IntImplicit ScalarImplicit Size __contains__
    __derive_index __getitem__ __is__ __isnot__ __not__ __range_length __round_to_zero_floordiv _infer_size
    _list_to_tensor _set_item _size_if_not_equal _tensor_to_list _unwrap_optional append capitalize clear count degrees
    dict divmod endswith extend fabs factorial find floordiv format gamma gcd get get_autocast_dtype has_torch_function
    insert is_autocast_cpu_enabled is_autocast_enabled is_grad_enabled is_scripting isalnum isalpha isdecimal isdigit
    items join keys len list lower lstrip mathremainder modf ord percentFormat pop popitem radians remove replace
    reverse rfind rstrip set_grad_enabled setdefault sorted splitlines startswith str strip update upper values
    warn zfill
"""
"""Operators `aten::NAME` on numbers, lists, dictionaries and texts; `warn` only passes a text to Python's warnings."""

CONSTRUCTS = """
    BroadcastSizes CallFunction CallMethod ChunkSizes Constant ConstantChunk CreateObject DictConstruct
    Enter EnumName EnumValue Exit GetAttr If IfThenElse ListConstruct ListUnpack Loop ModuleContainerIndex NumToTensor
    RaiseException ReductionSizes Return SetAttr StringIndex TupleConstruct TupleIndex TupleSlice TupleUnpack
    Uninitialized abs annotate data device dtype is_cpu is_cuda is_meta is_mkldnn is_mps is_nested is_quantized
    is_sparse is_xla is_xpu isinstance itemsize layout max min nbytes rangelist requires_grad tolist type unchecked_cast
    unchecked_unwrap_optional
"""
"""Constructs `prim::NAME` of the language: control flow, calls of functions in the same file, and containers."""

ALLOWED_OPERATORS = frozenset(
    [f"aten::{name}{suffix}" for name in TENSOR_OPERATORS.split() for suffix in ("", "_")]
    + [f"aten::{name}" for name in VALUE_OPERATORS.split()]
    + [f"prim::{name}" for name in CONSTRUCTS.split()]
)

REMEDIES = {
    "prim::Print": "remove `print` from the network and save it again",
    "prim::PythonOp": "it calls Python; save the network with torch.jit.script",
    "aten::sleep": "remove it and save the network again",
    "mkldnn": "save it without torch.jit.optimize_for_inference",
    "mkldnn_prepacked": "save it without torch.jit.optimize_for_inference",
    "quantized": "save the network before it is quantized",
}
"""Operator or namespace => what to do about it."""


def operator_error(name: str, operator: str, function: str) -> UserError:
    """Create the error for a file with an operator that is not allowed; `function` is the one that contains it."""
    remedy = REMEDIES.get(operator) or REMEDIES.get(operator.partition("::")[0])
    remedy = remedy or "remove it, or use package.module:callable if you trust the code"
    return UserError(f"{name}: contains the operator {operator} (in {function}), which is not allowed; {remedy}")
