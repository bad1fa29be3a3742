"""Every known end of an engine is told by its reason, with a hint that names what to change."""

import re
from pathlib import Path

import pytest

from darktree_operator.diagnosis import TABLE, diagnose
from darktree_operator.lastwords import MAX_LAST_WORDS_BYTES
from darktree_operator.reasons import Reason

RECORDED = Path(__file__).parent / "last_words"
PACKAGES = Path(__file__).parents[2] / ".venv-vllm" / "lib" / "python3.11" / "site-packages"

# What a real vLLM 0.32 left when it was made to fail on a CPU (record_last_words.py).
SEEN = {
    "kv_cache_too_small": (Reason.KV_CACHE_TOO_SMALL, "contextLength to 8576 or less"),
    "kv_cache_too_small_one_process": (Reason.KV_CACHE_TOO_SMALL, "contextLength to 8576 or less"),
    "memory_of_the_node": (Reason.HOST_OUT_OF_MEMORY, "gpuMemoryPercent to"),
    "context_too_long": (Reason.INVALID_SPEC, "contextLength to 32768 or less"),
    "too_many_sequences": (Reason.INVALID_SPEC, "maxNumSeqs to 2048 or less"),
    "heads_not_divisible": (Reason.INVALID_SPEC, "accelerator.count to one of 1, 2:"),
    "unknown_flag": (Reason.UNSUPPORTED_FLAG, "remove --no-such-flag=1 from spec.engine.extraArgs"),
    "invalid_value": (Reason.UNSUPPORTED_FLAG, "--max-model-len of spec.engine.contextLength"),
    "invalid_choice": (Reason.UNSUPPORTED_FLAG, "--kv-cache-dtype of spec.engine.kvCacheDtype"),
    "tool_choice_without_parser": (Reason.UNSUPPORTED_FLAG, "add --tool-call-parser=NAME"),
    "unknown_tool_parser": (
        Reason.UNSUPPORTED_FLAG,
        "tool call parser that this version does not have: nope",
    ),
    "not_quantized": (Reason.UNSUPPORTED_MODEL, "quantization to Auto"),
    "otherwise_quantized": (Reason.UNSUPPORTED_MODEL, "files are awq"),
    "unknown_architecture": (Reason.UNSUPPORTED_MODEL, "version to a newer one"),
    "unknown_model_type": (Reason.UNSUPPORTED_MODEL, "does not know grok9"),
    "broken_weights": (Reason.DOWNLOAD_FAILED, "files are broken"),
    "empty_folder": (Reason.MODEL_NOT_FOUND, "no model with a config.json"),
    "not_in_the_cache": (Reason.MODEL_NOT_FOUND, "the volume lacks the model's files"),
}

# What cannot be made to happen here: the words, and where in the installed packages they stand.
READ = [
    (
        "ValueError: To serve at least one request with the model's max seq len (32768), (6.0 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (0.0 GiB). Try increasing `gpu_memory_utilization`",
        "vllm/v1/core/kv_cache_utils.py",
        "To serve at least one request with the model's max seq len",
        Reason.KV_CACHE_TOO_SMALL,
        "contextLength to less than 32768",
    ),
    (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when",
        "vllm/v1/core/kv_cache_utils.py",
        "No available memory for the cache blocks",
        Reason.KV_CACHE_TOO_SMALL,
        "the weights leave no memory",
    ),
    (
        "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token.",
        "vllm/v1/core/kv_cache_utils.py",
        "Cannot auto-fit max_model_len",
        Reason.KV_CACHE_TOO_SMALL,
        "the weights leave no memory",
    ),
    (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try",
        "vllm/v1/worker/gpu_model_runner.py",
        "CUDA out of memory occurred when warming up sampler with",
        Reason.GPU_OUT_OF_MEMORY,
        "spec.engine.maxNumSeqs",
    ),
    (
        "ValueError: Free memory on device cuda:0 (12.5/22.04 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 19.84 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "vllm/v1/worker/utils.py",
        "is less than desired GPU memory utilization",
        Reason.GPU_OUT_OF_MEMORY,
        "gpuMemoryPercent to 56 or less",
    ),
    (
        "ValueError: Free memory on device cuda:0 (2.5/22.04 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 19.84 GiB).",
        "vllm/v1/worker/utils.py",
        "is less than desired GPU memory utilization",
        Reason.GPU_OUT_OF_MEMORY,
        "only 2.5 of 22.04 GiB are free; end it",
    ),
    (
        "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (32768). This effectively limits",
        "vllm/config/scheduler.py",
        "smaller than max_model_len",
        Reason.INVALID_SPEC,
        "--max-num-batched-tokens in spec.engine.extraArgs to 32768",
    ),
    (
        "ValueError: World size (2) is larger than the number of available GPUs (1) in this node. If this is",
        "vllm/config/parallel.py",
        "is larger than the number of ",
        Reason.GPU_UNAVAILABLE,
        "was given 1 GPUs, not 2",
    ),
    (
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "vllm/config/device.py",
        "Failed to infer device type",
        Reason.GPU_UNAVAILABLE,
        "sees no GPU",
    ),
    (
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current "
        "capability: 75.",
        "vllm/config/vllm.py",
        "is not supported for the current GPU. Minimum ",
        Reason.UNSUPPORTED_MODEL,
        "this GPU cannot run fp8",
    ),
    (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has",
        "vllm/platforms/cuda.py",
        "Bfloat16 is only supported on GPUs",
        Reason.UNSUPPORTED_MODEL,
        "--dtype=half",
    ),
    (
        "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
        "vllm/config/vllm.py",
        "is not supported for quantization",
        Reason.UNSUPPORTED_MODEL,
        "--dtype=half",
    ),
    (
        "ValueError: No valid attention backend found for NVIDIA L4 with AttentionSelectorConfig(head_size=64). Why",
        "vllm/platforms/cuda.py",
        "No valid attention backend found for",
        Reason.UNSUPPORTED_MODEL,
        "NVIDIA L4 cannot run this model so",
    ),
    (
        "ValueError: Model architectures ['Grok9ForCausalLM'] are not supported for now. Supported architectures: dict",
        "vllm/model_executor/models/registry.py",
        "are not supported for now",
        Reason.UNSUPPORTED_MODEL,
        "cannot serve 'Grok9ForCausalLM'",
    ),
    (
        "ValueError: Model architecture MotifForCausalLM was supported in vLLM until v0.10.2, and is not supported",
        "vllm/model_executor/models/registry.py",
        "was supported in vLLM until ",
        Reason.UNSUPPORTED_MODEL,
        "version to 0.10.2",
    ),
    (
        "ValueError: Model architecture BartModel is not supported in-tree anymore. Please install the plugin at",
        "vllm/model_executor/models/registry.py",
        "is not supported in-tree anymore",
        Reason.UNSUPPORTED_MODEL,
        "plugin for BartModel",
    ),
    (
        "RuntimeError: Failed to load the model config. If the model is a custom model not yet available in the "
        "HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM or using the",
        "vllm/transformers_utils/config.py",
        "`trust_remote_code=True` in LLM",
        Reason.UNSUPPORTED_MODEL,
        "--trust-remote-code",
    ),
    (
        "KeyError: 'invalid reasoning parser: nope (chose from { deepseek_r1 })'",
        "vllm/entrypoints/launchers/launcher.py",
        "invalid reasoning parser: ",
        Reason.UNSUPPORTED_FLAG,
        "reasoning parser",
    ),
    (
        "ValueError: Invalid repository ID or local directory specified: '/model/qwen'.\nPlease verify the following",
        "vllm/transformers_utils/config.py",
        "Invalid repository ID or local directory specified",
        Reason.MODEL_NOT_FOUND,
        "correct spec.model.source",
    ),
    (
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.\n\nRepository Not Found for url: https://x",
        "huggingface_hub/utils/_http.py",
        "Repository Not Found for url: ",
        Reason.MODEL_NOT_FOUND,
        "correct spec.model.source",
    ),
    (
        "huggingface_hub.errors.GatedRepoError: 403 Client Error.\n\nCannot access gated repo for url https://x.",
        "huggingface_hub/utils/_http.py",
        "Cannot access gated repo for url",
        Reason.MODEL_NOT_FOUND,
        "ask for access",
    ),
    (
        "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.\n\nRevision Not Found for url: https://x",
        "huggingface_hub/utils/_http.py",
        "Revision Not Found for url: ",
        Reason.MODEL_NOT_FOUND,
        "spec.model.revision to a commit",
    ),
    (
        "OSError: We couldn't connect to 'https://x' to load the files, and couldn't find them in the cached files.",
        "transformers/utils/hub.py",
        "We couldn't connect to",
        Reason.DOWNLOAD_FAILED,
        "could not be reached",
    ),
    (
        "ERROR EngineCore encountered a fatal error.\nRuntimeError: something new",
        "vllm/v1/engine/core.py",
        "EngineCore encountered a fatal error.",
        Reason.CRASH_LOOP,
        "kubectl logs",
    ),
]

# What older vLLM, torch, CUDA and Linux say; not in the packages that are installed here.
OLDER = [
    (
        "The model's max seq len (4096) is larger than the maximum number of tokens that can be stored in KV cache "
        "(3584). Try increasing `gpu_memory_utilization`",
        Reason.KV_CACHE_TOO_SMALL,
        "contextLength to 3584 or less",
    ),
    (
        "model's max seq len (4096) is larger than the maximum number of tokens that can be stored in KV cache (64)",
        Reason.KV_CACHE_TOO_SMALL,
        "even 1024 tokens do not fit",
    ),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total",
        Reason.GPU_OUT_OF_MEMORY,
        "gpuMemoryPercent",
    ),
    ("OSError: [Errno 28] No space left on device", Reason.DISK_FULL, "spec.cache.size"),
    ("OSError: [Errno 12] Cannot allocate memory", Reason.HOST_OUT_OF_MEMORY, "hostMemoryPerGpuGiB"),
    ("Fatal Python error: Bus error", Reason.HOST_OUT_OF_MEMORY, "shared memory"),
    ("RuntimeError: No CUDA GPUs are available", Reason.GPU_UNAVAILABLE, "sees no GPU"),
    ("CUDA driver version is insufficient for CUDA runtime", Reason.GPU_UNAVAILABLE, "driver is too old"),
    (
        "CUDA error: no kernel image is available for execution on the device",
        Reason.GPU_UNAVAILABLE,
        "kernels",
    ),
    ("CUDA error: uncorrectable ECC error encountered", Reason.GPU_UNAVAILABLE, "cordon its node"),
    ("NCCL error in: ProcessGroupNCCL.cpp:77, unhandled system error", Reason.GPU_UNAVAILABLE, "each other"),
    ("CUDA error: an illegal memory access was encountered", Reason.CRASH_LOOP, "failed on the GPU"),
    ("PermissionError: [Errno 13] Permission denied: '/cache/huggingface'", Reason.CRASH_LOOP, "group 1000"),
    ("Temporary failure in name resolution", Reason.DOWNLOAD_FAILED, "DNS"),
    ("503 Server Error: Service Unavailable for url", Reason.DOWNLOAD_FAILED, "tried again"),
]


@pytest.mark.parametrize("name", SEEN)
def test_what_a_real_vllm_left_is_understood(name: str) -> None:
    words = (RECORDED / f"{name}.txt").read_text()
    reason, hint = SEEN[name]
    found = diagnose(words, exit_code=1, terminated_reason="Error")
    assert found is not None
    assert found.reason is reason
    assert hint in found.hint
    assert len(words.encode()) <= MAX_LAST_WORDS_BYTES


def test_every_recording_is_tested() -> None:
    assert {file.stem for file in RECORDED.glob("*.txt")} == set(SEEN)


@pytest.mark.parametrize(("words", "file", "source", "reason", "hint"), READ, ids=[row[2] for row in READ])
def test_what_vllm_can_say_is_understood(
    words: str, file: str, source: str, reason: Reason, hint: str
) -> None:
    found = diagnose(words)
    assert found is not None
    assert found.reason is reason
    assert hint in found.hint
    if PACKAGES.exists():  # `make vllm` has installed them
        assert source in (PACKAGES / file).read_text()


@pytest.mark.parametrize(("words", "reason", "hint"), OLDER, ids=[row[0][:40] for row in OLDER])
def test_what_others_say_is_understood(words: str, reason: Reason, hint: str) -> None:
    found = diagnose(words)
    assert found is not None
    assert found.reason is reason
    assert hint in found.hint


def test_every_row_of_the_table_has_its_words_here() -> None:
    said = [*((RECORDED / f"{name}.txt").read_text() for name in SEEN), *(row[0] for row in READ + OLDER)]
    said += ["trying to access a gated repo"]
    first = {next(known for known in TABLE if known.pattern.search(words)) for words in said}
    assert [known.pattern.pattern for known in TABLE if known not in first] == []


def test_what_only_kubernetes_knows_is_told_too() -> None:
    killed = diagnose("", exit_code=137, terminated_reason="OOMKilled")
    assert killed is not None
    assert killed.reason is Reason.HOST_OUT_OF_MEMORY
    full = diagnose("", exit_code=135, terminated_reason="Error")
    assert full is not None
    assert "shared memory" in full.hint
    assert diagnose("something nobody has seen before", 1, "Error") is None


def test_hints_are_short_and_never_hold_a_placeholder() -> None:
    for words in [
        *(row[0] for row in READ),
        *(row[0] for row in OLDER),
        "error: unrecognized arguments: " + "--x " * 999,
    ]:
        found = diagnose(words)
        assert found is not None
        assert len(found.hint) <= 512  # the schema's limit of status.lastFailure.hint
        assert not re.search(r"\{\w+\}", found.hint)
