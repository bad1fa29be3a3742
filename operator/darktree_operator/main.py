"""What kopf runs: the process' start, end and liveness, and a handler that has a lane looked at. `kopf run -A -m` this.

kopf's watch does not tell of what was deleted while it was broken off, and its handlers keep their progress in the
objects; so handlers do nothing but enqueue, and what is true comes from the operator's own copies.
"""

import dataclasses
import logging
import ssl
from typing import Any

import kopf

from darktree_kit import logs
from darktree_operator.lane import GROUP, PLURAL, VERSION
from darktree_operator.process import NotAlive, Operator
from darktree_operator.settings import Settings

MAX_STOP_SECONDS = 15


class Credentials(kopf.ConnectionInfo):
    """What kopf found, for authorities that lack what the strict check of Python 3.13 asks for: many clusters' own."""

    def as_ssl_context(self) -> ssl.SSLContext:
        context = super().as_ssl_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as darktree_kit.cluster
        return context


@kopf.on.login()
def log_in(memo: kopf.Memo, **arguments: Any) -> kopf.ConnectionInfo | None:
    """Find the credentials where kopf itself would, unless the memo brings some along."""
    if "credentials" in memo:
        brought: kopf.ConnectionInfo = memo.credentials
        return brought
    found = kopf.login_via_client(**arguments)
    if found is None:
        return None
    return Credentials(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Begin to follow the API server: the one that the memo brings along, else the kubeconfig's or the pod's own."""
    said = Settings()
    logs.configure("operator", said.log_level)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it says that it enqueued, at each event
    settings.posting.enabled = False
    settings.peering.standalone = True  # several operators are told apart by a Lease
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = MAX_STOP_SECONDS
    memo.operator = Operator(said, cluster=memo.get("cluster"))
    await memo.operator.start()


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Write no more, and give the lease back."""
    await memo.operator.stop()


@kopf.on.probe(id="reconciling")
async def alive(memo: kopf.Memo, **_: Any) -> dict[str, object]:
    """Fail when reconciling has stopped, not only when the process has."""
    try:
        found: dict[str, object] = memo.operator.check()
    except NotAlive as error:
        raise kopf.PermanentError(str(error)) from error
    return found


@kopf.on.event(GROUP, VERSION, PLURAL)
async def changed(namespace: str | None, name: str | None, memo: kopf.Memo, **_: Any) -> None:
    """Have the lane looked at."""
    memo.operator.enqueue((namespace or "", name or ""))
