"""The providers as data: names, libraries, options and precisions."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CPU", "CUDA", "NV_TENSORRT_RTX", "PROVIDERS", "TENSORRT", "Provider"]

_CUDA_OPTIONS = """
arena_extend_strategy cudnn_conv1d_pad_to_nc1d cudnn_conv_algo_search cudnn_conv_use_max_workspace
do_copy_in_default_stream enable_cuda_graph enable_skip_layer_norm_strict_mode fuse_conv_bias
gpu_mem_limit prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_max_tuning_duration_ms
tunable_op_tuning_enable use_ep_level_unified_stream use_tf32
"""
_TENSORRT_OPTIONS = """
trt_auxiliary_streams trt_build_heuristics_enable trt_builder_optimization_level
trt_context_memory_sharing_enable trt_cuda_graph_enable trt_detailed_build_log trt_dla_core
trt_dla_enable trt_dump_subgraphs trt_engine_cache_enable trt_engine_cache_path
trt_engine_cache_prefix trt_engine_hw_compatible trt_extra_plugin_lib_paths
trt_force_sequential_engine_build trt_force_timing_cache trt_layer_norm_fp32_fallback
trt_max_partition_iterations trt_max_workspace_size trt_min_subgraph_size trt_op_types_to_exclude
trt_preview_features trt_profile_max_shapes trt_profile_min_shapes trt_profile_opt_shapes
trt_sparsity_enable trt_tactic_sources trt_timing_cache_enable trt_timing_cache_path
"""
_RTX_OPTIONS = """
enable_cuda_graph nv_detailed_build_log nv_dump_subgraphs nv_enable_profiling
nv_max_workspace_size nv_op_types_to_exclude
nv_persistent_context_memory nv_profile_max_shapes nv_profile_min_shapes nv_profile_opt_shapes
nv_profiling_output_file nv_runtime_cache_path nv_use_external_data_initializer
nv_use_sync_gpu_allocator nv_weight_streaming_budget
"""
_IN_THE_GRAPH = "the graph defines the precision, and this would let TensorRT change it"
_NO_ADDRESS = "an address in another program's memory has no meaning here"
_BY_DEVICE = "the GPU is chosen when the engine is opened: --device cuda:1"


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One execution provider.

    Attributes:
        name: The name on the command line.
        title: The name in texts.
        registered: The name in ONNX Runtime.
        shared_object: File of the provider's library; ``None`` if it is part of ONNX Runtime.
        plugin: The module that contains the library, if it is not part of onnxruntime-gpu.
        opens: Libraries that it opens at run time instead of linking them.
        fallback: The provider for the nodes that this one does not support.
        hint: The command that installs it.
        target: The quantization target of its INT8 graphs (see `optimizer.targets`).
        computed: Precisions that it computes; others are refused.
        options: Names of the options that make sense on the command line, taken from the shared
            objects of onnxruntime-gpu 1.31.1 and plugin 0.5.0.
        refused: Options that exist but are refused, with the reason.
        typed_by_graph: Whether it computes node by node in the types of the graph. A compiler
            (TensorRT) does not report what its nodes became.
        profile_options: Prefix of the options for the smallest, optimal and largest shapes.
        distributions: Packages that contain the underlying library, for the manifest.
    """

    name: str
    title: str
    registered: str
    shared_object: str | None = None
    plugin: str | None = None
    opens: tuple[str, ...] = ()
    fallback: str | None = None
    hint: str = "pip install onnxruntime-gpu"
    target: str = "tensorrt"
    computed: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    refused: tuple[tuple[str, str], ...] = ()
    typed_by_graph: bool = True
    profile_options: str | None = None
    distributions: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.shared_object is not None


CPU = Provider(
    name="cpu",
    title="CPU",
    registered="CPUExecutionProvider",
    target="onnxruntime",
    hint="pip install onnxruntime",
    computed=frozenset({"fp32", "int8", "mixed"}),
)
CUDA = Provider(
    name="cuda",
    title="CUDA",
    registered="CUDAExecutionProvider",
    shared_object="libonnxruntime_providers_cuda.so",
    # Not linked since 1.31, but its error message asks for it and convolutions need it.
    opens=("libcudnn.so.9",),
    # It has no INT8 convolution: Q/DQ graphs run in floating point between the Q/DQ nodes.
    computed=frozenset({"fp32", "fp16"}),
    distributions=("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cublas"),
    options=frozenset(_CUDA_OPTIONS.split()),
    refused=(
        ("device_id", _BY_DEVICE),
        *((f"gpu_external_{what}", _NO_ADDRESS) for what in ("alloc", "free", "empty_cache")),
        ("has_user_compute_stream", _NO_ADDRESS),
        ("user_compute_stream", _NO_ADDRESS),
    ),
)
TENSORRT = Provider(
    name="tensorrt",
    title="TensorRT",
    registered="TensorrtExecutionProvider",
    shared_object="libonnxruntime_providers_tensorrt.so",
    opens=("libnvinfer_plugin.so.10",),
    fallback="cuda",
    computed=frozenset({"fp32", "fp16", "bf16", "int8", "fp8", "mixed"}),
    options=frozenset(_TENSORRT_OPTIONS.split()),
    refused=(
        ("device_id", _BY_DEVICE),
        # Without any of these, the provider builds strongly typed networks.
        *((f"trt_{precision}_enable", _IN_THE_GRAPH) for precision in ("fp16", "bf16", "int8")),
        ("trt_int8_calibration_table_name", _IN_THE_GRAPH),
        ("trt_int8_use_native_calibration_table", _IN_THE_GRAPH),
        ("has_user_compute_stream", _NO_ADDRESS),
        ("user_compute_stream", _NO_ADDRESS),
    ),
    typed_by_graph=False,
    profile_options="trt_profile",
    distributions=("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
)
NV_TENSORRT_RTX = Provider(
    name="nv-tensorrt-rtx",
    title="TensorRT-RTX",
    registered="NvTensorRTRTXExecutionProvider",
    shared_object="libonnxruntime_providers_nv_tensorrt_rtx.so",
    plugin="onnxruntime_ep_nv_tensorrt_rtx",
    hint="pip install onnxruntime-ep-nv-tensorrt-rtx",
    computed=frozenset({"fp32", "fp16", "bf16", "int8", "fp8", "mixed"}),
    options=frozenset(_RTX_OPTIONS.split()),
    refused=(
        ("device_id", _BY_DEVICE),
        ("nv_target_sm", "this provider compiles for the GPU at hand when the engine is opened"),
        ("has_user_compute_stream", _NO_ADDRESS),
        ("user_compute_stream", _NO_ADDRESS),
        ("user_aux_stream_array", _NO_ADDRESS),
    ),
    typed_by_graph=False,
    profile_options="nv_profile",
    distributions=(
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    ),
)
PROVIDERS: dict[str, Provider] = {p.name: p for p in (CPU, CUDA, TENSORRT, NV_TENSORRT_RTX)}
