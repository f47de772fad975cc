"""Names of JAX's primitives by what they do; every list of primitives stands here."""

from __future__ import annotations

ELEMENTWISE = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bessel_i0e",
        "bessel_i1e",
        "cbrt",
        "ceil",
        "clamp",
        "clz",
        "complex",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "eq_to",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "igamma",
        "igamma_grad_a",
        "igammac",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "le_to",
        "lgamma",
        "log",
        "log1p",
        "log2",
        "logistic",
        "lt",
        "lt_to",
        "max",
        "min",
        "mul",
        "mul_no_nan",
        "mulhi",
        "name",
        "ne",
        "neg",
        "nextafter",
        "not",
        "one_minus_square",
        "or",
        "polygamma",
        "polynomial",
        "population_count",
        "pow",
        "real",
        "reduce_precision",
        "regularized_incomplete_beta",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "square_p",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
        "zeta",
    ]
)
IDENTITY = frozenset(("device_put", "layout_constraint", "optimization_barrier", "reshard", "sharding_constraint"))
"""Every result is the operand in the same place, wherever it is kept."""
SAME = IDENTITY | frozenset(
    (
        "broadcast_in_dim",
        "concatenate",
        "copy",
        "copy_p",
        "dynamic_slice",
        "expand_dims",
        "gather",
        "name",
        "pad",
        "reshape",
        "rev",
        "select_n",
        "slice",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "transpose",
        "unstack",
    )
)
"""Every entry of the result is an entry of an operand.

Which one does not depend on latents, or else all is one part.
"""

TRANSCENDENTAL = frozenset(
    (
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "log2",
        "logistic",
        "tanh",
        "erf",
        "erfc",
        "erf_inv",
        "pow",
        "sin",
        "cos",
        "tan",
        "sinh",
        "cosh",
        "atan2",
    )
)
POLYNOMIAL = frozenset(
    ("lgamma", "digamma", "polygamma", "igamma", "igammac", "regularized_incomplete_beta", "bessel_i0e", "bessel_i1e")
)
"""Compilers take these apart into cheap operations, and repeat those wherever the result is used."""
LINEAR = frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "cumsum",
        "expand_dims",
        "pad",
        "reduce_sum",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
        "unstack",
    ]
)
SUMS = LINEAR | frozenset(("add", "add_any", "convert_element_type", "copy", "copy_p", "name", "neg", "sub"))
"""Linear in all of their operands together."""
PLACED = {"dynamic_slice": 1, "dynamic_update_slice": 2, "gather": 1, "scatter-add": 1, "scatter_add": 1}
"""Linear in operands that are entries, given where: how many come before those that say where. What a scatter adds
comes last."""
PARTIAL = frozenset(["pad", "slice"])
"""Those that may leave out elements of what they are given, so that all of their result is not all of it."""
REDUCTIONS = frozenset(f"reduce_{kind}" for kind in ("and", "max", "min", "or", "prod", "xor")) | {"argmax", "argmin"}
INDEXED = frozenset(["dynamic_slice", "gather"])
WITHOUT_RULE = frozenset(
    (  # noqa: SIM905 - a name a line would be two hundred lines
        # of whole arrays: transforms, windows, updates of places, solvers, sparse matrices
        "approx_top_k bcoo_dot_general bcoo_dot_general_sampled bcoo_extract bcoo_fromdense bcoo_sort_indices "
        "bcoo_spdot_general bcoo_sum_duplicates bcoo_todense bcoo_transpose bcsr_dot_general bcsr_extract "
        "bcsr_fromdense bcsr_todense bitcast_convert_type broadcast_to cholesky_update conv_general_dilated "
        "coo_fromdense coo_matmat coo_matvec coo_spmm coo_spmv coo_todense csr_fromdense csr_matmat csr_matvec "
        "csr_spmm csr_spmv csr_todense cudnn_fusion custom_linear_solve dot_product_attention_bwd "
        "dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper "
        "dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd "
        "dot_product_attention_fwd_wrapper eig empty empty2 fft geqp3 geqrf hessenberg iota "
        "iota_2x32_shape lu_pivots_to_permutation ormqr ragged_dot_general reduce reduce_window reduce_window_max "
        "reduce_window_min reduce_window_sum scaled_dot scaled_matmul scaled_matmul_wrapper "
        "schur select_and_gather_add select_and_scatter "
        "select_and_scatter_add spsolve todense tridiagonal tridiagonal_solve zeros_like "
        # of random numbers and their keys
        "from_edtype philox2x32 philox4x32 random_bits random_clone random_fold_in random_gamma random_seed "
        "random_split random_unwrap random_wrap rng_bit_generator rng_uniform threefry2x32 threefry4x32 to_edtype "
        # that leave the program, or call others that kayn does not look into
        "call_exported call_hi_primitive call_hi_primitive_linearized check core_map custom_lin "
        "custom_partitioning custom_vmap_call debug_callback debug_print eval_jaxpr ffi_call inspect_sharding "
        "io_callback linear_call platform_index pure_callback remat_opt run_state shape_assertion shard_map "
        # between devices
        "all_gather all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start "
        "all_gather_start all_to_all all_to_all_done all_to_all_start axis_index pbroadcast pbroadcast_done "
        "pbroadcast_dynamic pbroadcast_start pin pmax pmin ppermute ppermute_done ppermute_start precv preduced "
        "psend psum psum_done psum_invariant psum_invariant_start psum_start pvary ragged_all_to_all "
        "reduce_scatter reduce_scatter_done reduce_scatter_start reduced_vary_cast reduced_vary_cast_p relayout "
        "unreduced_pmax unreduced_pmin unreduced_psum unreduced_psum_start unreduced_reduce_scatter "
        "unreduced_reduce_scatter_start vary_unreduced_cast vary_unreduced_cast_p with_memory_space_constraint "
        # of references, logs and JAX's own bookkeeping
        "accum_grad_in_ref addupdate after_all box_get box_set create_linear create_token dce_sink dim_as_value "
        "dimension_size empty_ref free_ref freeze get log_extend log_read new_box new_log new_ref stage swap tie "
        "unpin unreachable "
    ).split()
)
"""Those that no reader of programs has a rule for.

All of their results is read as made of all of their operands, which is always right, but may cost particle axes. A
primitive that is in no list is new: see whether it wants a rule, and else add it here.
"""
CALLS = frozenset(
    (
        "call",
        "checkpoint",
        "closed_call",
        "composite",
        "core_call",
        "custom_jvp_call",
        "custom_jvp_call_jaxpr",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat",
        "remat2",
    )
)
"""What calls another program on its operands as they are. Other primitives have programs among their parameters too
(`reduce`, loops), but call them on parts of their operands."""
