"""The engine's command line: always in the same order, by the engine's version, the lane's own flags last.

The order is fixed because another order is another pod template, and another template takes a GPU down and up again.
`tests/operator/test_arguments.py` has every list that is made here read by the parser of a real vLLM.
"""

import re

from darktree_operator.lane import SPEED_ANNOTATION, Lane

PORT = 8000
QUIET_PATHS = "/health,/metrics,/ping"  # probes and scrapes would be most of the log
DEFAULT_TOKENS_PER_SECOND = "100"

Version = tuple[int, ...]
OLDEST_VERSION: Version = (0, 16)  # nothing is known here of older engines
SHUTDOWN_TIMEOUT_SINCE: Version = (0, 18)

# `awq` alone forces the slow kernel, measured at a ninth of the speed; no lane can say it.
_QUANTIZATION = {"AwqMarlin": "awq_marlin", "Fp8": "fp8"}

OWNED_FLAGS = {
    "model": "spec.model.source",
    "revision": "spec.model.revision",
    "served-model-name": "spec.model.servedName",
    "quantization": "spec.model.quantization",
    "max-model-len": "spec.engine.contextLength",
    "gpu-memory-utilization": "spec.engine.gpuMemoryPercent",
    "device-memory-utilization": "spec.engine.gpuMemoryPercent",
    "max-num-seqs": "spec.engine.maxNumSeqs",
    "context-length": "spec.engine.contextLength",
    "maximum-concurrent-sequences": "spec.engine.maxNumSeqs",
    "enable-prefix-caching": "spec.engine.prefixCaching",
    "no-enable-prefix-caching": "spec.engine.prefixCaching",
    "kv-cache-dtype": "spec.engine.kvCacheDtype",
    "tensor-parallel-size": "spec.accelerator.count",
    "shutdown-timeout": "spec.drain.gracePeriodSeconds",
    "download-dir": "spec.cache",
    "hf-token": "spec.secrets.huggingFace",
    "api-key": "spec.secrets.engineKey",
}
"""What the operator says itself, and the field that says it."""

REFUSED_FLAGS = {
    "config": "its file could set what the lane's fields set",
    "host": "the engine is reached by its pod's address",
    "port": "the Service, the probes and the NetworkPolicy name the port",
    "uds": "the engine is reached over the network",
    "grpc": "requests would pass by the meter",
    "grpc-port": "requests would pass by the meter",
    "headless": "the engine would serve nothing",
    "root-path": "the gateway knows the engine's paths",
    "middleware": "it would run other code in front of the meter",
    "ssl-": "the gateway speaks plain HTTP to the engine",
    "pipeline-parallel-size": "a replica is one pod",
    "data-parallel-": "use spec.replicas: a replica is one pod",
    "nnodes": "a replica is one pod",
    "disable-log-stats": "metering, alerts and autoscaling read the engine's metrics",
    "enable-log-requests": "prompts are never logged",
    "enable-log-outputs": "answers are never logged",
    "allowed-local-media-path": "requests could read the pod's files",
    "tool-server": "the engine would run tools",
    "trust-request-chat-template": "a request could make its prompt longer than it is bounded at",
    "tokens-only": "the gateway needs the OpenAI endpoints",
    "enable-scale-out": "requests would pass by the meter",
}
"""What no lane may say, and why; a hyphen at the end stands for every flag that begins so."""

REFUSED_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "it opens endpoints that sleep, reset and reconfigure the engine",
    "VLLM_API_KEY": "use spec.secrets.engineKey, so that the key is in no manifest",
    "HF_TOKEN": "use spec.secrets.huggingFace, so that the token is in no manifest",
    "HUGGING_FACE_HUB_TOKEN": "use spec.secrets.huggingFace, so that the token is in no manifest",
    "HF_HOME": "spec.cache says where files are kept",
    "HF_HUB_CACHE": "spec.cache says where files are kept",
    "HF_HUB_OFFLINE": "the operator says when everything is there",
    "VLLM_CACHE_ROOT": "spec.cache says where files are kept",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it opens endpoints that change what is served",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "it lets a message run code",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "answers are never logged",
    "VLLM_HOST_IP": "the engine is reached by its pod's address",
    "VLLM_PORT": "the Service, the probes and the NetworkPolicy name the port",
    "VLLM_PLUGINS": "it loads other code into the engine",
    "LD_PRELOAD": "it loads other code into the engine",
    "PYTHONPATH": "it loads other code into the engine",
    "NVIDIA_VISIBLE_DEVICES": "it reaches GPUs that other pods were given",
    "CUDA_VISIBLE_DEVICES": "the node says which GPUs the pod was given",
}
"""Variables that no lane may set, and why."""

_FLAG = re.compile(r"--([a-z0-9][a-z0-9_-]*)(\.[A-Za-z0-9_.+-]+)?(=.*)?", re.DOTALL)


def refused_argument(argument: str) -> str | None:
    """Return why a lane may not pass this argument, or None.

    One item is one flag with its value after `=`: in a list of flags and values one could pass for the other. The
    engine's parser takes underscores for hyphens, and any unique beginning for the whole flag; so do the refusals.
    """
    found = _FLAG.fullmatch(argument)
    if found is None:
        return f"{argument[:80]!r} is not one flag with its value after an equals sign: write --flag=value"
    name = found[1].replace("_", "-")
    for owned, field in OWNED_FLAGS.items():
        if owned.startswith(name):
            return f"--{name} is the operator's: use {field}"
    for refused, why in REFUSED_FLAGS.items():
        if refused.startswith(name) or (refused.endswith("-") and name.startswith(refused)):
            return f"--{name} is refused: {why}"
    return None


def refused_variable(name: str) -> str | None:
    """Return why a lane may not set this variable, or None."""
    why = REFUSED_ENVIRONMENT.get(name)
    return None if why is None else f"{name} is refused: {why}"


def parse_version(text: str) -> Version | None:
    """Return the numbers of `0.32.0` or `v0.32.0`, or None if there are none."""
    found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[.+-].*|rc\d+)?", text)
    return tuple(int(part) for part in found.groups() if part is not None) if found else None


def vllm_arguments(lane: Lane, version: Version, model: str, gpus: int, shutdown_seconds: int) -> list[str]:
    """Return what follows `vllm serve`. `model` is a repository's name or a folder in the pod."""
    spec = lane.spec
    engine = spec.engine
    arguments = [model, "--served-model-name", spec.model.served_name, *spec.model.aliases]
    if spec.model.revision is not None and spec.model.source.startswith("hf://"):
        arguments += ["--revision", spec.model.revision]
    arguments += ["--port", str(PORT)]
    arguments += ["--max-model-len", "auto" if engine.context_length is None else str(engine.context_length)]
    arguments += ["--gpu-memory-utilization", f"0.{engine.gpu_memory_percent:02d}"]
    if engine.max_num_seqs is not None:
        arguments += ["--max-num-seqs", str(engine.max_num_seqs)]
    arguments.append("--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching")
    if spec.model.quantization in _QUANTIZATION:
        arguments += ["--quantization", _QUANTIZATION[spec.model.quantization]]
    if engine.kv_cache_dtype == "Fp8":
        arguments += ["--kv-cache-dtype", "fp8"]
    arguments += ["--tensor-parallel-size", str(max(1, gpus))]
    if version >= SHUTDOWN_TIMEOUT_SINCE:
        arguments += ["--shutdown-timeout", str(shutdown_seconds)]
    arguments += ["--disable-access-log-for-endpoints", QUIET_PATHS]
    return [*arguments, *engine.extra_args]


def simulator_arguments(lane: Lane) -> list[str]:
    """Return what follows `python -m darktree_simulator`."""
    spec = lane.spec
    arguments = ["--host", "0.0.0.0", "--port", str(PORT), "--model", spec.model.served_name]
    for alias in spec.model.aliases:
        arguments += ["--model", alias]
    speed = lane.annotations.get(SPEED_ANNOTATION, DEFAULT_TOKENS_PER_SECOND)
    arguments += ["--tokens-per-second", speed]
    if spec.engine.context_length is not None:
        arguments += ["--context-length", str(spec.engine.context_length)]
    if spec.engine.max_num_seqs is not None:
        arguments += ["--maximum-concurrent-sequences", str(spec.engine.max_num_seqs)]
    return [*arguments, *spec.engine.extra_args]
