"""What Prometheus scrapes of a platform on one machine: the file of targets that `file_sd_configs` reads."""

import json
from collections.abc import Iterable
from urllib.parse import urlsplit

from darktree_cli.platform import Process, Stage

JOB = "darktree"
# In a cluster the operator's PodMonitors give engines their lane by this label of their pods.
LANE_LABEL = "darktree_dev_lane"
_SILENT = (Stage.DATABASE, Stage.STRIPE)  # these have no metrics


def targets(processes: Iterable[Process]) -> str:
    """Return the file's content: each process that has metrics, and an engine with the lane that it serves."""
    found = []
    for process in processes:
        if process.url is None or process.stage in _SILENT:
            continue
        labels = {"job": JOB, "part": process.name.partition("-")[0]}
        if process.stage is Stage.ENGINE:
            labels[LANE_LABEL] = process.name.partition("-")[2]
        found.append({"targets": [urlsplit(process.url).netloc], "labels": labels})
    return json.dumps(found, indent=2) + "\n"
