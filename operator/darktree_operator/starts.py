"""How the last engine's start went, by the phases that its times tell, and what the running one says of itself: pure.

Loading weights, compiling and warming up are one phase: an engine answers nothing before all three are done.
"""

from datetime import datetime, timedelta
from urllib.parse import urlsplit

from darktree_operator import instants
from darktree_operator.lane import Object
from darktree_operator.observed import EngineFacts, Observed
from darktree_operator.pod import CONTAINER
from darktree_operator.progress import Pod, Progress

JUST_READY_SECONDS = 60  # later a pod's times may be those of a probe that failed meanwhile
MAX_WORD_CHARACTERS = 32


def cold_start(before: Object, observed: Observed, seen: Progress) -> Object | None:
    """Return how long the last engine took from its pod's creation to being ready, phase by phase.

    Fetching the model's files comes before there is a pod, so it is a phase but no part of the total.
    """
    known: Object | None = before.get("coldStart")
    if seen.ready <= int(before.get("readyReplicas") or 0):
        return known
    newest: Object | None = None
    for pod in seen.pods:
        container = container_status(pod)
        if not pod.ready or container.get("restartCount"):
            continue
        times = _times(pod, container)
        if times is None or observed.now - times[3] > timedelta(seconds=JUST_READY_SECONDS):
            continue
        created, placed, began, ready = times
        phases = {
            "scheduleSeconds": _seconds(created, placed),
            "pullSeconds": _seconds(placed, began),
            "loadSeconds": _seconds(began, ready),
        }
        newest = {"lastTotalSeconds": _seconds(created, ready), "phases": phases | _fetched(observed)}
    return newest or known


def engine(before: Object, serving: Object | None, observed: Observed, seen: Progress) -> Object | None:
    """Return what an engine of the serving revision says of itself: the last word while nobody tells anew."""
    if serving is None:
        return None
    addresses = {
        str((pod.found.get("status") or {}).get("podIP") or "")
        for pod in seen.pods
        if pod.ready and pod.revision == serving["revisionHash"]
    }
    for url, facts in sorted(observed.engines.items()):
        if (urlsplit(url).hostname or "") in addresses and (said := _said(facts)):
            return said
    same = (before.get("serving") or {}).get("revisionHash") == serving["revisionHash"]
    return before.get("engine") if same else None


def container_status(pod: Pod) -> Object:
    """Return what is said of the engine's container, empty before it has one."""
    found = (pod.found.get("status") or {}).get("containerStatuses") or ()
    return next((each for each in found if each.get("name") == CONTAINER), {})


def _said(facts: EngineFacts) -> Object:
    words = {
        "version": facts.version,
        "maxModelLen": facts.max_model_len,
        "kvCacheTokens": facts.kv_cache_tokens,
        "maxConcurrency": facts.max_concurrency,
    }
    return {
        name: word[:MAX_WORD_CHARACTERS] if isinstance(word, str) else word
        for name, word in words.items()
        if word is not None
    }


def _fetched(observed: Observed) -> dict[str, int]:
    for job in observed.jobs:
        status = job.get("status") or {}
        began, ended = instants.parse(status.get("startTime")), instants.parse(status.get("completionTime"))
        if began is not None and ended is not None:
            return {"downloadSeconds": _seconds(began, ended)}
    return {}


def _times(pod: Pod, container: Object) -> tuple[datetime, datetime, datetime, datetime] | None:
    since = {
        each["type"]: instants.parse(each.get("lastTransitionTime"))
        for each in pod.found["status"].get("conditions") or ()
    }
    created = instants.parse(pod.found["metadata"].get("creationTimestamp"))
    placed, ready = since.get("PodScheduled"), since.get("Ready")
    began = instants.parse(((container.get("state") or {}).get("running") or {}).get("startedAt"))
    if created is None or placed is None or began is None or ready is None:
        return None
    return created, placed, began, ready


def _seconds(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds()))
