"""Why a condition is as it is: the closed list of reasons, in the words of conditions, events and alerts."""

from enum import StrEnum


class Reason(StrEnum):
    """One reason; `docs/lanes.md` says what each means and what to do about it."""

    AS_EXPECTED = "AsExpected"
    RECONCILING = "Reconciling"
    INVALID_SPEC = "InvalidSpec"
    INVALID_REFERENCE = "InvalidReference"
    SECRET_MISSING = "SecretMissing"  # noqa: S105
    CHILD_NOT_OWNED = "ChildNotOwned"
    QUOTA_EXCEEDED = "QuotaExceeded"
    INSUFFICIENT_MEMORY = "InsufficientMemory"

    INSUFFICIENT_GPU = "InsufficientGPU"
    UNSCHEDULABLE = "Unschedulable"
    VOLUME_UNBINDABLE = "VolumeUnbindable"
    NODE_LOST = "NodeLost"
    IMAGE_PULL_FAILED = "ImagePullFailed"

    DOWNLOADING_MODEL = "DownloadingModel"
    DOWNLOAD_FAILED = "DownloadFailed"
    LOADING_MODEL = "LoadingModel"
    STARTUP_TIMEOUT = "StartupTimeout"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"

    CRASH_LOOP = "CrashLoop"
    KV_CACHE_TOO_SMALL = "KVCacheTooSmall"
    CONTEXT_TOO_LONG = "ContextTooLong"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DISK_FULL = "DiskFull"
    UNSUPPORTED_FLAG = "UnsupportedFlag"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    UNSUPPORTED_HARDWARE = "UnsupportedHardware"
    QUANTIZATION_MISMATCH = "QuantizationMismatch"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_FILES_BROKEN = "ModelFilesBroken"
    GPU_UNUSABLE = "GPUUnusable"

    WAITING_FOR_IDLE = "WaitingForIdle"
    OUTSIDE_WINDOW = "OutsideWindow"
    PAUSED = "Paused"
    TEMPLATE_OUTDATED = "TemplateOutdated"
    ROLLED_BACK = "RolledBack"

    ASLEEP = "Asleep"
    SUSPENDED = "Suspended"
