"""What `darktree doctor` asks over HTTP and TLS: versions, backups, payments, certificates, and lanes of a cluster."""

from darktree_billing.client import AdminClient
from darktree_cli.findings import Finding, finding
from darktree_kit import clock
from darktree_kit.version import VERSION

MAX_BACKUP_HOURS = 26.0  # a day, and the time that it takes
MAX_EVENT_SECONDS = 600
MIN_CERTIFICATE_DAYS = 14.0
RESTING = frozenset({"Asleep", "Suspended"})  # as somebody wants it


async def backups(admin: AdminClient, *, wanted: bool) -> list[Finding]:
    """`wanted`: that there is none is a problem, too. On one machine it is a choice."""
    latest = await admin.latest_backup()
    advice = "back up, and tell billing: docs/operations.md, Backups"
    if latest is None:
        return [
            finding("backup", "none was ever recorded" if wanted else None, "none was ever recorded", advice)
        ]
    hours = (clock.utc_now() - latest.started_at).total_seconds() / 3600
    told = f"{hours:.1f} h ago, by {latest.made_by}"
    return [finding("backup", told if hours > MAX_BACKUP_HOURS else None, told, advice)]


async def payments(admin: AdminClient) -> list[Finding]:
    told = await admin.payments_status()
    if not told.buying:
        return [Finding("payments", True, "buying is off")]
    waited, review = told.oldest_waiting_seconds or 0, told.orders.get("review", 0)
    wrong = [
        *([f"{told.events_dead} events were given up"] if told.events_dead else []),
        *([f"{told.events_waiting} events wait, for {waited} s"] if waited > MAX_EVENT_SECONDS else []),
        *([f"{review} orders need a person"] if review else []),
    ]
    advice = "`darktree payments status`; docs/runbooks.md, DarktreeStripeEventsWait"
    return [finding("payments", "; ".join(wrong) or None, f"{told.events_waiting} events wait", advice)]


def version(theirs: str) -> Finding:
    problem = None if theirs == VERSION else f"{theirs} runs, and this is {VERSION}"
    return finding("billing's version", problem, theirs, "use the command line of the version that runs")


async def certificate(url: str) -> Finding | None:
    """Look at how long the certificate of an address is still good; None where there is no TLS."""
    from darktree_kit import certificates

    what = f"certificate of {certificates.target(url)}"
    try:
        until = await certificates.expiry(url)
    except (OSError, TimeoutError, ValueError) as error:
        return Finding(what, False, f"{type(error).__name__}: {error}", "does anything answer there?")
    if until is None:
        return None
    days = (until - clock.utc_now()).total_seconds() / 86_400
    told = f"good for {days:.0f} days" if days > 0 else f"expired {-days:.0f} days ago"
    return finding(what, told if days < MIN_CERTIFICATE_DAYS else None, told, "renew it")


async def lanes(kubeconfig: str | None, context: str | None) -> list[Finding]:
    """Look at every lane of a cluster."""
    from darktree_cli.lane_board import condition, is_ready, remarks
    from darktree_cli.lane_cluster import read_lanes
    from darktree_kit.cluster import Cluster, ClusterError, Object

    cluster = Cluster(kubeconfig, context)
    try:
        found = await read_lanes(cluster, None)
    except ClusterError as error:
        return [
            Finding("lanes", False, str(error), "is this the right kubeconfig, and are the CRDs installed?")
        ]
    finally:
        await cluster.close()

    def problem(lane: Object) -> str | None:
        reason = condition(lane, "Ready").get("reason", "nobody has looked at it: does the operator run?")
        resting = reason in RESTING
        return None if is_ready(lane) or resting else "; ".join(remarks([lane])) or reason

    advice = "`darktree lanes status`; docs/lanes.md has every reason"
    return [
        finding(
            f"lane {lane['metadata']['name']}",
            problem(lane),
            (lane.get("status") or {}).get("phase", ""),
            advice,
        )
        for lane in found
    ]
