"""What an engine's last words mean: a reason of the closed list, and what would mend it.

A table, most specific first: what real vLLM, or what it stands on, says, and a hint that names a field of the lane.
Every row has a test with the engine's own words.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from darktree_operator.arguments import OWNED_FLAGS
from darktree_operator.lane import LEAST_CONTEXT_LENGTH
from darktree_operator.reasons import Reason

MAX_MESSAGE_CHARACTERS = 8192  # of what is read; Kubernetes keeps at most 4096 bytes
MAX_WORD_CHARACTERS = 120
LEAST_GPU_MEMORY_PERCENT = 50
EXIT_BUS_ERROR = 135

Hint = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why an engine ended, and the change that would have prevented it."""

    reason: Reason
    hint: str


@dataclass(frozen=True, slots=True)
class Known:
    """One row: what is said, what it means, and what to do, which may use the pattern's named groups."""

    reason: Reason
    pattern: re.Pattern[str]
    hint: Hint


def diagnose(message: str, exit_code: int | None = None, terminated_reason: str = "") -> Diagnosis | None:
    """Return what is known of a container that ended; None if nothing is.

    `message` is its last words, `terminated_reason` what Kubernetes says (`OOMKilled`, `Error`).
    """
    text = message[-MAX_MESSAGE_CHARACTERS:]
    for known in TABLE:
        found = known.pattern.search(text)
        if found is not None:
            return Diagnosis(known.reason, _hint(known.hint, found))
    if terminated_reason == "OOMKilled":
        return Diagnosis(Reason.HOST_OUT_OF_MEMORY, HOST_MEMORY)
    if exit_code == EXIT_BUS_ERROR:
        return Diagnosis(Reason.HOST_OUT_OF_MEMORY, SHARED_MEMORY)
    return None


HOST_MEMORY = (
    "the container needs more of the node's memory: raise hostMemoryPerGpuGiB of the accelerator's class in the "
    "operator's configuration"
)
SHARED_MEMORY = "the shared memory of the pod is full: see whether other engines of this node end so too"
LESS_KV = "raise spec.engine.gpuMemoryPercent, or use a larger class or more of spec.accelerator"
LOGS = "read the pod's log: kubectl logs POD --previous"


def _fits(found: re.Match[str]) -> str:
    fits = int(found["fits"])
    if fits < LEAST_CONTEXT_LENGTH:
        return f"even {LEAST_CONTEXT_LENGTH} tokens do not fit: {LESS_KV}"
    return f"set spec.engine.contextLength to {fits} or less, or {LESS_KV}"


def _derived(found: re.Match[str]) -> str:
    return f"set spec.engine.contextLength to {int(float(found['most']))} or less: the model was made for no more"


def _free(found: re.Match[str]) -> str:
    percent = int(100 * float(found["free"]) / float(found["total"]))
    who = "something else uses this memory"
    if percent < LEAST_GPU_MEMORY_PERCENT:
        return f"{who}: only {found['free']} of {found['total']} GiB are free; end it"
    return f"{who}: end it, or set spec.engine.gpuMemoryPercent to {percent} or less"


def _argument(found: re.Match[str]) -> str:
    flag = found["flag"].split("/")[0]
    field = OWNED_FLAGS.get(flag.lstrip("-"), "spec.engine.extraArgs")
    return f"the engine refuses {flag} of {field}: {found['why'].strip()[:MAX_WORD_CHARACTERS]}"


def _divisors(found: re.Match[str]) -> str:
    heads = int(found["heads"])
    counts = [str(count) for count in range(1, 17) if heads % count == 0]
    return (
        f"set spec.accelerator.count to one of {', '.join(counts)}: it must divide the model's {heads} heads"
    )


def _hint(hint: Hint, found: re.Match[str]) -> str:
    if callable(hint):
        return hint(found)
    words = {name: (word or "").strip()[:MAX_WORD_CHARACTERS] for name, word in found.groupdict().items()}
    return hint.format(**words)


def _known(reason: Reason, pattern: str, hint: Hint) -> Known:
    return Known(reason, re.compile(pattern, re.DOTALL), hint)


TABLE: tuple[Known, ...] = (
    # Memory of the accelerator.
    _known(
        Reason.KV_CACHE_TOO_SMALL,
        r"max seq len \(\d+\).{0,300}?estimated maximum model length is (?P<fits>\d+)",
        _fits,
    ),
    _known(
        Reason.KV_CACHE_TOO_SMALL,
        r"max seq len \(\d+\) is larger than the maximum number of tokens that can be stored in KV cache"
        r" \((?P<fits>\d+)\)",
        _fits,
    ),
    _known(
        Reason.KV_CACHE_TOO_SMALL,
        r"To serve at least one request with the model's max seq len \((?P<asked>\d+)\)",
        "set spec.engine.contextLength to less than {asked}, or " + LESS_KV,
    ),
    _known(
        Reason.KV_CACHE_TOO_SMALL,
        r"No available memory for the cache blocks|Cannot auto-fit max_model_len",
        "the weights leave no memory: " + LESS_KV,
    ),
    _known(
        Reason.GPU_OUT_OF_MEMORY,
        r"CUDA out of memory occurred when warming up",
        "set spec.engine.maxNumSeqs or spec.engine.gpuMemoryPercent to less",
    ),
    _known(
        Reason.GPU_OUT_OF_MEMORY,
        r"Free memory on device \S* ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired",
        _free,
    ),
    _known(
        Reason.HOST_OUT_OF_MEMORY,
        r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired",
        _free,
    ),
    _known(
        Reason.GPU_OUT_OF_MEMORY,
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory",
        "set spec.engine.gpuMemoryPercent or spec.engine.maxNumSeqs to less, or use a larger class of accelerator",
    ),
    _known(
        Reason.HOST_OUT_OF_MEMORY,
        r"DefaultCPUAllocator: can't allocate memory|std::bad_alloc|Cannot allocate memory|\nMemoryError",
        HOST_MEMORY,
    ),
    _known(Reason.HOST_OUT_OF_MEMORY, r"Bus error", SHARED_MEMORY),
    _known(
        Reason.DISK_FULL,
        r"No space left on device|Not enough free disk space",
        "set spec.cache.size to more, or remove models that no lane uses from the volume",
    ),
    # What the engine was told.
    _known(
        Reason.UNSUPPORTED_FLAG,
        r"error: unrecognized arguments: (?P<flags>[^\n]+)",
        "remove {flags} from spec.engine.extraArgs: this version of the engine does not know it",
    ),
    _known(
        Reason.UNSUPPORTED_FLAG,
        r"error: argument (?P<flag>-[^\s:]+): (?P<why>(invalid|expected)[^\n]+)",
        _argument,
    ),
    _known(
        Reason.UNSUPPORTED_FLAG,
        r"--enable-auto-tool-choice requires --tool-call-parser",
        "add --tool-call-parser=NAME to spec.engine.extraArgs, or remove --enable-auto-tool-choice",
    ),
    _known(
        Reason.UNSUPPORTED_FLAG,
        r"invalid (?P<what>tool call|reasoning) parser: (?P<name>\S+)",
        "spec.engine.extraArgs names a {what} parser that this version does not have: {name}",
    ),
    _known(
        Reason.INVALID_SPEC,
        r"max_model_len \(\d+\) is greater than the derived max_model_len \(\w+=(?P<most>[\d.]+)",
        _derived,
    ),
    _known(
        Reason.INVALID_SPEC,
        r"max_num_batched_tokens \((?P<tokens>\d+)\) must be greater than or equal to max_num_seqs",
        "set spec.engine.maxNumSeqs to {tokens} or less",
    ),
    _known(
        Reason.INVALID_SPEC,
        r"max_num_batched_tokens \(\d+\) is smaller than max_model_len \((?P<asked>\d+)\)",
        "set --max-num-batched-tokens in spec.engine.extraArgs to {asked} or more, or remove it",
    ),
    _known(
        Reason.INVALID_SPEC,
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size",
        _divisors,
    ),
    # The model.
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"Model architectures \[(?P<name>[^\]]+)\] are not supported",
        "this version of the engine cannot serve {name}: set spec.engine.version to a newer one",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        # Two kilobytes of the names that it does support are what is left of the same message.
        r"'\w+For(CausalLM|SequenceClassification|ConditionalGeneration)'\]\)( \[type=value_error|\s*$)",
        "this version of the engine cannot serve this model: set spec.engine.version to a newer one",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"Model architecture (?P<name>\S+) was supported in vLLM until v(?P<last>[\d.]*\d)",
        "set spec.engine.version to {last}, the last one that serves {name}",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"Model architecture (?P<name>\S+) is not supported in-tree anymore",
        "use an image with the engine's plugin for {name} in spec.engine.image",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"model type `(?P<name>[^`]+)` but Transformers does not recognize this architecture",
        "this version of the engine does not know {name}: set spec.engine.version to a newer one",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"[Pp]lease set the option `trust_remote_code=True`|contains custom code which must be executed"
        r"|consider setting `trust_remote_code=True`",
        "the model brings its own code: read it, then add --trust-remote-code to spec.engine.extraArgs",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"specified in the model config \((?P<has>[^)]*)\) does not match the quantization\s+method",
        "set spec.model.quantization to Auto: the model's files are {has}",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"Cannot find the config file for (?P<asked>\w+)",
        "set spec.model.quantization to Auto: the model's files are not quantized, so not {asked}",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"quantization method (?P<asked>\w+) is not supported for the current GPU",
        "use a newer class of accelerator: this GPU cannot run {asked}",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"Bfloat16 is only supported on GPUs with compute capability|not supported for quantization method",
        "add --dtype=half to spec.engine.extraArgs, or use a newer class of accelerator",
    ),
    _known(
        Reason.UNSUPPORTED_MODEL,
        r"No valid attention backend found for (?P<gpu>[^\n]{1,60}?) with",
        "use another class of accelerator or spec.engine.kvCacheDtype: {gpu} cannot run this model so",
    ),
    # The model's files.
    _known(
        Reason.MODEL_NOT_FOUND,
        r"[Cc]annot access gated repo|is a gated repository|trying to access a gated repo"
        r"|Access to model \S+ is restricted",
        "ask for access to the model and name a token that has it in spec.secrets.huggingFace",
    ),
    _known(
        Reason.MODEL_NOT_FOUND,
        r"Revision Not Found|is not a valid git identifier|Invalid rev id",
        "set spec.model.revision to a commit of the model's repository",
    ),
    _known(
        Reason.MODEL_NOT_FOUND,
        r"outgoing traffic has been disabled|HF_HUB_OFFLINE|Cannot find an appropriate cached snapshot",
        "the volume lacks the model's files: give spec.restart another id to have them fetched again",
    ),
    _known(
        Reason.DOWNLOAD_FAILED,
        r"We couldn't connect to|Name or service not known|Temporary failure in name resolution|Connection refused"
        r"|Network is unreachable|Connection reset by peer|Read timed out|ConnectTimeout|ReadTimeout"
        r"|Consistency check failed",
        "the place where the model's files are could not be reached: see the cluster's DNS and way out",
    ),
    _known(
        Reason.DOWNLOAD_FAILED,
        r"5\d\d Server Error|429 Client Error|Too Many Requests",
        "the place where the model's files are is overloaded: it is tried again",
    ),
    _known(
        Reason.MODEL_NOT_FOUND,
        r"Repository Not Found|is not a local folder and is not a valid model identifier|401 Client Error"
        r"|403 Forbidden|Invalid username or password",
        "correct spec.model.source, or name a token that may read it in spec.secrets.huggingFace",
    ),
    _known(
        Reason.MODEL_NOT_FOUND,
        r"Invalid repository ID or local directory specified|Repo id must be in the form|directory: '/model",
        "correct spec.model.source: there is no model with a config.json",
    ),
    _known(
        Reason.DOWNLOAD_FAILED,
        r"SafetensorError|Error while deserializing header|invalid load key",
        "the model's files are broken: remove them from the volume and give spec.restart another id",
    ),
    # The GPU itself.
    _known(
        Reason.GPU_UNAVAILABLE,
        r"World size \((?P<asked>\d+)\) is larger than the number of available GPUs \((?P<has>\d+)\)",
        "the pod was given {has} GPUs, not {asked}: see the node's device plugin",
    ),
    _known(
        Reason.GPU_UNAVAILABLE,
        r"no kernel image is available for execution",
        "the image has no kernels for this GPU: set spec.engine.version to another one",
    ),
    _known(
        Reason.GPU_UNAVAILABLE,
        r"CUDA driver version is insufficient|driver on your system is too old",
        "the node's driver is too old for the image: update it, or set spec.engine.version to an older one",
    ),
    _known(
        Reason.GPU_UNAVAILABLE,
        r"uncorrectable ECC error|GPU is lost|has fallen off the bus|NVML_ERROR",
        "the GPU is broken: cordon its node and see its kernel's log",
    ),
    _known(
        Reason.GPU_UNAVAILABLE,
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|libcuda\.so"
        r"|CUDA driver initialization failed|CUDA unknown error",
        "the container sees no GPU: see the node's driver, its device plugin and the class's runtimeClassName",
    ),
    _known(
        Reason.GPU_UNAVAILABLE,
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError",
        "the pod's GPUs cannot reach each other: see whether they are on one board",
    ),
    # Known to end it, but not why.
    _known(
        Reason.CRASH_LOOP,
        r"Permission denied|Read-only file system",
        "the engine may not write to its volume: let group 1000 write, see the storage class",
    ),
    _known(
        Reason.CRASH_LOOP,
        r"CUDA error: |CUDNN_STATUS_|illegal memory access",
        "the engine failed on the GPU: " + LOGS,
    ),
    _known(
        Reason.CRASH_LOOP, r"Engine core initialization failed|EngineDeadError|EngineCore encountered", LOGS
    ),
)
