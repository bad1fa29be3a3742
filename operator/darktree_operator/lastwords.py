"""How an engine's last words reach the operator without a right to read logs.

Kubernetes keeps the last 4 KiB that a container wrote to its termination log, and only when that is empty the last
2 KiB of its output. vLLM's cause is further up: its server ends with a long traceback that says "see root cause above".
So vLLM's errors, which its processes log, go to the termination log as well, by its own logging configuration; what
ends it before it logs (a wrong flag) still comes from the output. The file is an annotation of the pod, seen as a file.
"""

import json

from darktree_operator.lane import GROUP

LOGGING_ANNOTATION = f"{GROUP}/engine-logging"
LOGGING_VOLUME = "logging"
LOGGING_PATH = "/etc/darktree/logging.json"
TERMINATION_LOG = "/dev/termination-log"
MAX_LAST_WORDS_BYTES = 4096  # Kubernetes' own limit


def logging_config(termination_log: str = TERMINATION_LOG) -> str:
    """Return vLLM's logging configuration, by Python's own classes and attributes so that any version takes it."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "format": "%(levelname)s %(asctime)s [%(processName)s %(name)s:%(lineno)d] %(message)s",
                "datefmt": "%Y-%m-%dT%H:%M:%S%z",
            },
            "words": {"format": "%(message)s"},
        },
        "handlers": {
            "output": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"},
            "last": {
                "class": "logging.FileHandler",
                "formatter": "words",
                "level": "ERROR",
                "filename": termination_log,
                "delay": True,
            },
        },
        "loggers": {"vllm": {"handlers": ["output", "last"], "level": "INFO", "propagate": False}},
    }
    return json.dumps(config, separators=(",", ":"))
