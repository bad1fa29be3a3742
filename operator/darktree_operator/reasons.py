"""The closed list of reasons that a lane's conditions, events and last failure may give.

Alerts and runbooks are keyed by them, so a reason is never renamed and never made up elsewhere. `docs/lanes.md` has
each with its meaning; a test compares the two.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a condition is what it is. The text behind each is its meaning for a reader."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> "Reason":
        reason = str.__new__(cls, name)
        reason._value_ = name
        reason.meaning = meaning
        return reason

    AS_EXPECTED = "AsExpected", "Everything is as the lane asks."
    UNKNOWN = "Unknown", "Nothing has been observed yet."

    # The lane itself, before anything runs.
    INVALID_SPEC = (
        "InvalidSpec",
        "A field has a value that no engine could be started with; the message names it.",
    )
    INVALID_REFERENCE = (
        "InvalidReference",
        "The lane names something that the operator's configuration lacks.",
    )
    SECRET_MISSING = "SecretMissing", "A secret, or its key, that the lane refers to does not exist."
    INSUFFICIENT_MEMORY = "InsufficientMemory", "By estimate the model does not fit the accelerator's memory."
    CHILD_NOT_OWNED = "ChildNotOwned", "An object of a name that the lane needs belongs to somebody else."
    QUOTA_EXCEEDED = "QuotaExceeded", "A quota or an admission rule of the namespace refuses the lane's pods."
    APPLY_FAILED = "ApplyFailed", "The API server refused one of the lane's objects."

    # Places and files.
    INSUFFICIENT_GPU = "InsufficientGPU", "No node has as many free GPUs as a replica needs."
    UNSCHEDULABLE = "Unschedulable", "No node takes the pod, for another reason than GPUs."
    VOLUME_UNBINDABLE = "VolumeUnbindable", "The cache's volume cannot be bound."
    IMAGE_PULL_FAILED = "ImagePullFailed", "The engine's image cannot be pulled."
    DOWNLOADING_MODEL = "DownloadingModel", "The model's files are being fetched, before a GPU is taken."
    DOWNLOAD_FAILED = "DownloadFailed", "The model's files could not be fetched."
    MODEL_NOT_FOUND = "ModelNotFound", "There is no such model or revision, or it may not be read."
    DISK_FULL = "DiskFull", "A volume or the node's disk has no space left."

    # Starting and running.
    STARTING = "Starting", "Pods are being placed and their containers started."
    LOADING_MODEL = "LoadingModel", "An engine has started and is loading its model."
    STARTUP_TIMEOUT = (
        "StartupTimeout",
        "The engine did not answer within spec.coldStart.startupTimeoutSeconds.",
    )
    KV_CACHE_TOO_SMALL = "KVCacheTooSmall", "The context does not fit what memory is left for the cache."
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory", "The GPU has not enough memory."
    HOST_OUT_OF_MEMORY = "HostOutOfMemory", "The container was killed for its memory."
    GPU_UNAVAILABLE = "GPUUnavailable", "The node's GPU or its driver cannot be used by the engine."
    UNSUPPORTED_FLAG = "UnsupportedFlag", "The engine does not know a flag, or refuses its value."
    UNSUPPORTED_MODEL = "UnsupportedModel", "The engine cannot serve this model or its quantization."
    CRASH_LOOP = "CrashLoop", "An engine ends again and again, in a way that is not known here."
    UNHEALTHY = "Unhealthy", "An engine that served no longer answers its probe."
    NODE_LOST = "NodeLost", "A pod's node does not answer."
    EVICTED = "Evicted", "A pod was evicted from its node."

    # Revisions.
    ROLLING_OUT = "RollingOut", "Another revision is taking the place of the one that serves."
    PROGRESS_DEADLINE_EXCEEDED = (
        "ProgressDeadlineExceeded",
        "The new revision did not become available in its time.",
    )
    WAITING_FOR_IDLE = "WaitingForIdle", "The new revision waits until the lane serves no request."
    OUTSIDE_WINDOW = "OutsideWindow", "The new revision waits for the maintenance window."
    WAITING_FOR_TURN = "WaitingForTurn", "A newer template waits until other lanes have taken theirs."
    ROLLOUT_PAUSED = "RolloutPaused", "spec.rollout.paused holds the new revision back."
    ROLLED_BACK = "RolledBack", "The new revision crashed too often; the last one that served is back."

    # Replicas.
    SCALING = "Scaling", "Replicas are being added or drained."
    ASLEEP = "Asleep", "No request for long: no replica runs until one comes."
    WAKING = "Waking", "A request came while the lane slept; a replica is starting."
    NO_REPLICAS = "NoReplicas", "The lane asks for no replica."
    SUSPENDED = "Suspended", "spec.suspend is set."
    SIGNAL_MISSING = "SignalMissing", "No gateway says what is in flight; replicas stay as they are."
    DRAINING = "Draining", "Replicas finish what they serve before they go."
    DRIFT_CORRECTED = "DriftCorrected", "Somebody changed an object of the lane; it was put back."
    TEMPLATE_OUTDATED = (
        "TemplateOutdated",
        "A newer operator or configuration would start the pods otherwise.",
    )


_BY_NAME = {reason.value: reason for reason in Reason}


def named(name: str) -> Reason:
    """Return the reason that is written so. Raises KeyError when it is not in the list."""
    return _BY_NAME[name]
