"""How the gateway and the command line use billing."""

from collections.abc import AsyncIterator
from urllib.parse import quote

from pydantic import BaseModel

from darktree_billing.backup_schemas import BackupView, RecordBackup
from darktree_billing.close_schemas import CloseList, CloseResult, ImportBalance, ImportedBalance
from darktree_billing.key_format import key_digest, key_id_of
from darktree_billing.payments_client import PaymentsCalls
from darktree_billing.reconciliation_schemas import EngineReading, EngineReadings, ReconciliationReport
from darktree_billing.request_schemas import (
    CapRequestPage,
    CapRequestState,
    CapRequestView,
    DecideCap,
    DecideLane,
    LaneRequestPage,
    LaneRequestState,
    LaneRequestView,
)
from darktree_billing.schemas import (
    DEFAULT_PAGE,
    AdjustCredits,
    AdjustmentView,
    CapView,
    Catalog,
    CreateCustomer,
    CreatedKey,
    CreateKey,
    CustomerPage,
    CustomerView,
    GrantCredits,
    GrantView,
    InviteMember,
    KeyPage,
    KeyView,
    LimitsView,
    MemberView,
    RequestLimits,
    SetCap,
    StatusView,
    VerifiedKey,
    VerifyKey,
)
from darktree_kit.errors import ApiError
from darktree_kit.http import InternalClient
from darktree_ledger.reports import HoldPage
from darktree_ledger.schemas import AccountView, CheckReport, EntryPage

CHECK_TIMEOUT_SECONDS = 620.0  # a little more than billing itself waits for the ledger's checker
ADMIN_TIMEOUT_SECONDS = 30.0  # billing waits for the ledger in between

__all__ = ["AdminClient", "BillingClient", "key_digest", "key_id_of"]


class BillingClient:
    """The gateway's look-ups. Raises billing's refusals as ApiError, and Unreachable when no answer came."""

    def __init__(self, base_url: str, token: str) -> None:
        self._http = InternalClient(base_url, token, service="billing")

    async def close(self) -> None:
        await self._http.close()

    async def verify_key(self, key_id: str, key_sha256: str) -> VerifiedKey | None:
        """Return whose key this is, or None when it is unknown, revoked or expired."""
        body = VerifyKey(key_id=key_id, key_sha256=key_sha256).model_dump_json().encode()
        try:
            content = await self._http.call("POST", "/internal/keys/verify", body=body)
        except ApiError as error:
            if error.answer_status == 404:
                return None
            raise
        return VerifiedKey.model_validate_json(content)

    async def keep_engine_readings(self, readings: list[EngineReading]) -> None:
        """Tell what engines say they processed. Repeating it, late or out of order, changes nothing."""
        body = EngineReadings(readings=readings).model_dump_json().encode()
        await self._http.call("POST", "/internal/engine-readings", body=body)

    async def catalog(self) -> Catalog:
        """Return every plan and model with its prices."""
        return Catalog.model_validate_json(await self._http.call("GET", "/internal/catalog"))


class AdminClient(PaymentsCalls):
    """The administration of customers, keys, caps and credits, with the administrator's token.

    Every method raises billing's refusal as an ApiError, and Unreachable when no answer came.
    """

    def __init__(self, base_url: str, token: str) -> None:
        self._http = InternalClient(base_url, token, service="billing", timeout=ADMIN_TIMEOUT_SECONDS)
        self._slow_http = InternalClient(base_url, token, service="billing", timeout=CHECK_TIMEOUT_SECONDS)

    async def close(self) -> None:
        await self._http.close()
        await self._slow_http.close()

    async def create_customer(self, body: CreateCustomer) -> CustomerView:
        """Make a customer and its account. With an id, repeating it changes nothing."""
        return CustomerView.model_validate_json(await self._send("POST", "/admin/customers", body))

    async def customers(self, *, limit: int = DEFAULT_PAGE, after: str | None = None) -> CustomerPage:
        """Return one page of customers; `after` is the `next` of the page before."""
        content = await self._http.call("GET", "/admin/customers", params=_page(limit, after))
        return CustomerPage.model_validate_json(content)

    async def customer(self, customer_id: str) -> CustomerView:
        return CustomerView.model_validate_json(await self._http.call("GET", _customer(customer_id)))

    async def invite_member(self, customer_id: str, body: InviteMember) -> MemberView:
        """Let an e-mail address sign in to the customer's console. Repeating it changes nothing."""
        return MemberView.model_validate_json(
            await self._send("POST", _customer(customer_id, "members"), body)
        )

    async def create_key(self, customer_id: str, body: CreateKey) -> CreatedKey:
        """Make a key. The answer is the only one that ever holds it."""
        return CreatedKey.model_validate_json(await self._send("POST", _customer(customer_id, "keys"), body))

    async def keys(self, customer_id: str, *, limit: int = DEFAULT_PAGE, after: str | None = None) -> KeyPage:
        """Return one page of a customer's keys; `after` is the `next` of the page before."""
        content = await self._http.call("GET", _customer(customer_id, "keys"), params=_page(limit, after))
        return KeyPage.model_validate_json(content)

    async def revoke_key(self, key_id: str) -> KeyView:
        """Revoke a key for good. Repeating it changes nothing."""
        return KeyView.model_validate_json(await self._http.call("DELETE", f"/admin/keys/{_part(key_id)}"))

    async def cap(self, customer_id: str) -> CapView:
        return CapView.model_validate_json(await self._http.call("GET", _customer(customer_id, "cap")))

    async def set_cap(self, customer_id: str, body: SetCap) -> CapView:
        return CapView.model_validate_json(await self._send("PUT", _customer(customer_id, "cap"), body))

    async def limits(self, customer_id: str) -> LimitsView:
        return LimitsView.model_validate_json(await self._http.call("GET", _customer(customer_id, "limits")))

    async def set_limits(self, customer_id: str, body: RequestLimits) -> LimitsView:
        """Limit the requests of each key: None is what the plan says, 0 no limit."""
        return LimitsView.model_validate_json(await self._send("PUT", _customer(customer_id, "limits"), body))

    async def grant(self, customer_id: str, body: GrantCredits) -> GrantView:
        """Give credits. With a `grant_id`, repeating it gives nothing more."""
        return GrantView.model_validate_json(await self._send("POST", _customer(customer_id, "grants"), body))

    async def adjust(self, customer_id: str, body: AdjustCredits) -> AdjustmentView:
        """Correct a balance, up or down. With an `adjustment_id`, repeating it changes nothing more."""
        content = await self._send("POST", _customer(customer_id, "adjustments"), body)
        return AdjustmentView.model_validate_json(content)

    async def holds(
        self, customer_id: str | None = None, *, limit: int = DEFAULT_PAGE, after: str | None = None
    ) -> HoldPage:
        """Return one page of what running requests hold: everybody's, or one customer's."""
        params = _page(limit, after) | _told(customer_id=customer_id)
        return HoldPage.model_validate_json(await self._http.call("GET", "/admin/holds", params=params))

    async def cap_requests(
        self,
        customer_id: str | None = None,
        state: CapRequestState | None = None,
        *,
        limit: int = DEFAULT_PAGE,
        after: str | None = None,
    ) -> CapRequestPage:
        """Return one page of who asked for another daily cap, newest first."""
        params = _page(limit, after) | _told(customer_id=customer_id, state=state)
        content = await self._http.call("GET", "/admin/cap-requests", params=params)
        return CapRequestPage.model_validate_json(content)

    async def decide_cap(self, request_id: str, body: DecideCap) -> CapRequestView:
        """Approve or decline. Repeating a decision changes nothing."""
        path = f"/admin/cap-requests/{_part(request_id)}/decision"
        return CapRequestView.model_validate_json(await self._send("POST", path, body))

    async def lane_requests(
        self,
        customer_id: str | None = None,
        state: LaneRequestState | None = None,
        *,
        limit: int = DEFAULT_PAGE,
        after: str | None = None,
    ) -> LaneRequestPage:
        """Return one page of who asked for a dedicated lane, newest first."""
        params = _page(limit, after) | _told(customer_id=customer_id, state=state)
        content = await self._http.call("GET", "/admin/lane-requests", params=params)
        return LaneRequestPage.model_validate_json(content)

    async def lane_manifest(self, request_id: str) -> str:
        """Return the InferenceLane to apply for a request, as YAML."""
        path = f"/admin/lane-requests/{_part(request_id)}/manifest.yaml"
        return (await self._http.call("GET", path)).decode()

    async def decide_lane(self, request_id: str, body: DecideLane) -> LaneRequestView:
        """Accept or decline. Repeating a decision changes nothing."""
        path = f"/admin/lane-requests/{_part(request_id)}/decision"
        return LaneRequestView.model_validate_json(await self._send("POST", path, body))

    async def balance(self, customer_id: str) -> AccountView:
        return AccountView.model_validate_json(
            await self._http.call("GET", _customer(customer_id, "balance"))
        )

    async def entries(
        self,
        customer_id: str,
        *,
        limit: int = DEFAULT_PAGE,
        after: str | None = None,
        kind: str | None = None,
    ) -> EntryPage:
        """Return one page of ledger entries, newest first."""
        params = _page(limit, after) | ({"kind": kind} if kind else {})
        content = await self._http.call("GET", _customer(customer_id, "entries"), params=params)
        return EntryPage.model_validate_json(content)

    async def plans(self) -> Catalog:
        return Catalog.model_validate_json(await self._http.call("GET", "/admin/plans"))

    async def check_ledger(self) -> CheckReport:
        """Have the ledger check itself. Takes time: it reads every entry."""
        return CheckReport.model_validate_json(await self._slow_http.call("POST", "/admin/ledger/check"))

    async def import_balance(self, body: ImportBalance) -> ImportedBalance:
        """Take in a file of Stripe's balance transactions. Repeating it changes nothing."""
        content = body.model_dump_json().encode()
        path = "/admin/balance-transactions"
        return ImportedBalance.model_validate_json(await self._slow_http.call("POST", path, body=content))

    async def close_month(self, month: str) -> CloseResult:
        """Close a month; closing it again tells whether the same would come out."""
        return CloseResult.model_validate_json(await self._slow_http.call("POST", _close(month)))

    async def closes(self) -> CloseList:
        """Return the closed months, newest first."""
        return CloseList.model_validate_json(await self._http.call("GET", "/admin/closes"))

    async def close_pack(self, month: str) -> bytes:
        """Return a closed month's pack: a zip."""
        return await self._slow_http.call("GET", _close(month, "pack.zip"))

    async def close_preview(self, month: str) -> bytes:
        """Return an open month's pack as far as it has come: a zip, unsigned."""
        return await self._slow_http.call("GET", _close(month, "preview.zip"))

    async def reconciliation(self) -> ReconciliationReport:
        """Hold the ledger against engines, Stripe, its own projection and its log."""
        return ReconciliationReport.model_validate_json(
            await self._slow_http.call("GET", "/admin/reconciliation")
        )

    def statement(self, customer_id: str, period: str, format: str) -> AsyncIterator[bytes]:
        """Stream a statement of a period (`2026-11` or `2026-11-01_2026-11-15`) as json, csv or pdf."""
        return self._http.stream(_customer(customer_id, "statements", f"{_part(period)}.{_part(format)}"))

    def export_ledger(self, customer_id: str | None, earlier: str | None) -> AsyncIterator[bytes]:
        """Stream the ledger's export; `earlier` is a checkpoint that was kept, for one customer's."""
        params = {"customer_id": customer_id, "earlier": earlier}
        told = {name: value for name, value in params.items() if value}
        return self._http.stream("/admin/ledger/export", params=told)

    async def record_backup(self, body: RecordBackup) -> BackupView:
        return BackupView.model_validate_json(await self._send("POST", "/admin/backups", body))

    async def latest_backup(self) -> BackupView | None:
        """Return the backup that began last, or None when none was ever recorded."""
        content = await self._http.call("GET", "/admin/backups/latest")
        return None if content == b"null" else BackupView.model_validate_json(content)

    async def status(self) -> StatusView:
        return StatusView.model_validate_json(await self._http.call("GET", "/admin/status"))

    async def _send(self, method: str, path: str, body: BaseModel) -> bytes:
        return await self._http.call(method, path, body=body.model_dump_json().encode())


def _customer(customer_id: str, *rest: str) -> str:
    return "/".join(["/admin/customers", _part(customer_id), *rest])


def _close(month: str, *rest: str) -> str:
    return "/".join(["/admin/closes", _part(month), *rest])


def _page(limit: int, after: str | None) -> dict[str, str]:
    return {"limit": str(limit)} | ({"after": after} if after else {})


def _told(**params: str | None) -> dict[str, str]:
    return {name: value for name, value in params.items() if value is not None}


def _part(text: str) -> str:
    """Return one part of a path; what an operator typed cannot reach another path."""
    return quote(text, safe="") or "-"
