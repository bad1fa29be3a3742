"""What only a stand-in has: `/_control`, where a test is the payer, the bank, the clock and the network."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from darktree_stripe_simulator import disputes, due, payouts, refunds, sessions
from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.api import read_body
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.faults import MAX_FAULTS, Fault, FaultBox
from darktree_stripe_simulator.methods import UnusableNumber, method
from darktree_stripe_simulator.webhooks import Courier, Rules, payload_of

T = TypeVar("T", bound=BaseModel)

MAX_EVENTS = 10_000
MAX_ADVANCE_SECONDS = 10 * 366 * 86_400


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pay(Order):
    method: Literal["card", "us_bank_account", "sepa_debit"] = "card"
    number: str | None = None
    email: str = "payer@example.com"
    name: str = "Pat Payer"


class Settle(Order):
    outcome: Literal["succeeded", "failed"] = "succeeded"


class OpenDispute(Order):
    reason: str = "fraudulent"
    amount: int | None = None
    inquiry: bool = False
    withdraw: bool = True


class CloseDispute(Order):
    status: Literal["won", "lost", "warning_closed"]
    return_fee: bool = False


class MakePayout(Order):
    everything: bool = True
    arrive: bool = True


class Clock(Order):
    advance_seconds: int = Field(ge=0, le=MAX_ADVANCE_SECONDS)


class Webhook(Order):
    url: str = Field(pattern=r"^(https?://\S+)?$")
    secrets: list[str] | None = Field(default=None, min_length=1, max_length=8)


class Deliver(Order):
    events: list[str] | None = Field(default=None, max_length=MAX_EVENTS)
    times: int = Field(default=1, ge=1, le=100)
    at_once: bool = False
    signed_seconds_ago: int = 0


class Control:
    """The endpoints under `/_control`. Each takes a small JSON object, and answers with what it made or changed."""

    def __init__(self, account: Account, courier: Courier, faults: FaultBox) -> None:
        self._account = account
        self._courier = courier
        self._faults = faults

    def routes(self) -> list[Route]:
        orders: list[tuple[str, type[Order], Callable[[Any, str], Object]]] = [
            ("sessions/{id}/pay", Pay, self._pay),
            ("payment_intents/{id}/settle", Settle, self._settle),
            ("refunds/{id}/settle", Settle, self._settle_refund),
            ("charges/{id}/dispute", OpenDispute, self._dispute),
            ("disputes/{id}/withdraw", Order, self._withdraw),
            ("disputes/{id}/escalate", Order, self._escalate),
            ("disputes/{id}/close", CloseDispute, self._close),
            ("payouts", MakePayout, self._payout),
            ("payouts/{id}/arrive", Order, self._arrive),
            ("payouts/{id}/fail", Order, self._fail),
            ("clock", Clock, self._advance),
            ("webhook", Webhook, self._webhook),
        ]
        made = [
            Route(f"/_control/{path}", self._endpoint(model, run), methods=["POST"])
            for path, model, run in orders
        ]
        return [
            *made,
            Route("/_control/deliver", self.deliver, methods=["POST"]),
            Route("/_control/delivery", self.delivery, methods=["GET", "POST"]),
            Route("/_control/faults", self.faults, methods=["GET", "POST", "DELETE"]),
            Route("/_control/events", self.events),
        ]

    def _endpoint(
        self, model: type[Order], run: Callable[[Any, str], Object]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            self._account.request = {"id": None, "idempotency_key": None}
            given = await _body(request, model)
            return JSONResponse(run(given, request.path_params.get("id", "")))

        return endpoint

    async def deliver(self, request: Request) -> Response:
        given = await _body(request, Deliver)
        events = given.events if given.events is not None else self._courier.undelivered()
        for id in events:
            self._account.find("event", id)
        results = await self._courier.deliver(
            events, times=given.times, at_once=given.at_once, signed_seconds_ago=given.signed_seconds_ago
        )
        return JSONResponse({"results": results})

    async def delivery(self, request: Request) -> Response:
        if request.method == "POST":
            changes = orjson.loads(await read_body(request) or b"{}")
            self._courier.rules = Rules.model_validate(self._courier.rules.model_dump() | changes)
        return JSONResponse(self._courier.rules.model_dump())

    async def faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._faults.faults.clear()
        elif request.method == "POST":
            if len(self._faults.faults) >= MAX_FAULTS:
                raise Refusal(f"There are {MAX_FAULTS} faults already.")
            self._faults.faults.append(await _body(request, Fault))
        return JSONResponse([fault.model_dump() for fault in self._faults.faults])

    async def events(self, request: Request) -> Response:
        """Every event, the oldest first, as it would be sent now: its body and its headers."""
        found = list(self._account.all("event"))[::-1][-MAX_EVENTS:]
        ago = int(request.query_params.get("signed_seconds_ago", "0"))
        data = []
        for event in found:
            payload = payload_of(event)
            data.append(
                {
                    "id": event["id"],
                    "type": event["type"],
                    "payload": payload.decode(),
                    "headers": self._courier.headers_of(payload, ago),
                    "taken": bool(self._account.private[event["id"]].get("taken")),
                }
            )
        return JSONResponse(data)

    def _pay(self, given: Pay, id: str) -> Object:
        session = self._account.find("checkout.session", id, "session")
        try:
            chosen = method(given.method, given.number)
        except UnusableNumber as error:
            raise Refusal(str(error), param="number") from error
        sessions.pay(self._account, session, chosen, {"email": given.email, "name": given.name})
        return session

    def _settle(self, given: Settle, id: str) -> Object:
        intent = self._account.find("payment_intent", id)
        sessions.settle(self._account, intent, sessions.CANCELED if given.outcome == "failed" else None)
        return intent

    def _settle_refund(self, given: Settle, id: str) -> Object:
        return refunds.settle(self._account, self._account.find("refund", id), given.outcome)

    def _dispute(self, given: OpenDispute, id: str) -> Object:
        return disputes.open_dispute(self._account, self._account.find("charge", id), **given.model_dump())

    def _withdraw(self, _: Order, id: str) -> Object:
        return disputes.withdraw_funds(self._account, self._account.find("dispute", id))

    def _escalate(self, _: Order, id: str) -> Object:
        return disputes.escalate(self._account, self._account.find("dispute", id))

    def _close(self, given: CloseDispute, id: str) -> Object:
        dispute = self._account.find("dispute", id)
        return disputes.close(self._account, dispute, given.status, return_fee=given.return_fee)

    def _payout(self, given: MakePayout, _: str) -> Object:
        payout = payouts.make_automatic(self._account, everything=given.everything)
        return payouts.arrive(self._account, payout) if given.arrive else payout

    def _arrive(self, _: Order, id: str) -> Object:
        return payouts.arrive(self._account, self._account.find("payout", id))

    def _fail(self, _: Order, id: str) -> Object:
        return payouts.fail(self._account, self._account.find("payout", id))

    def _advance(self, given: Clock, _: str) -> Object:
        self._account.advanced_seconds += given.advance_seconds
        due.run_due(self._account)
        self._courier.wake.set()
        return {"now": self._account.now()}

    def _webhook(self, given: Webhook, _: str) -> Object:
        settings = self._account.settings
        settings.webhook_url = given.url
        settings.webhook_secrets = given.secrets or settings.webhook_secrets
        return {"url": settings.webhook_url}


async def _body(request: Request, model: type[T]) -> T:
    try:
        return model.model_validate_json(await read_body(request) or b"{}")
    except ValidationError as error:
        raise Refusal(str(error)) from error
