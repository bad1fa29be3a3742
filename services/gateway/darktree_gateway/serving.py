"""One request from its arrival: who asks, for what, and may it be served. The exchange does the rest.

Plain ASGI: no framework routes or validates a completion.
"""

from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from darktree_billing.schemas import ModelView
from darktree_gateway import metrics, requests, spans
from darktree_gateway.admission import Admission, Admitted
from darktree_gateway.auth import Authenticator, Caller
from darktree_gateway.catalog import Prices
from darktree_gateway.errors import ModelNotFound
from darktree_gateway.exchange import Exchange
from darktree_gateway.lanes import Lane, Lanes
from darktree_gateway.limits import KeyLimits, Use
from darktree_gateway.metering import Metering
from darktree_gateway.placing import Place, Placing
from darktree_gateway.record import OK, Record
from darktree_gateway.requests import Ask, Endpoint
from darktree_gateway.upstream import Upstream
from darktree_gateway.watch import ClientLeft
from darktree_kit import tracing
from darktree_kit.errors import ApiError
from darktree_kit.ids import parse_request_id


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that serving needs; one a process."""

    authenticator: Authenticator
    prices: Prices
    lanes: Lanes
    placing: Placing
    key_limits: KeyLimits
    admission: Admission
    metering: Metering
    upstream: Upstream
    separate_prefix_caches: bool
    access_log: bool
    keep_alive_seconds: float

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for a completion. Raises the ApiError that refuses it."""
        record = Record()
        try:
            await self._serve(endpoint, scope, receive, send, record)
        except ApiError as error:
            record.refused(error)
            raise
        finally:
            record.count()
            if tracing.tracer is not None:
                spans.tell(record)
            if self.access_log or record.code != OK:
                scope["state"]["log_fields"] = record.fields()
            else:
                scope["state"]["quiet"] = True

    async def _serve(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send, record: Record
    ) -> None:
        caller = await self.authenticator.identify(scope["headers"])
        record.customer_id = caller.customer_id
        use: Use | None = None
        if caller.limits is not None:
            use, record.limit_headers = self.key_limits.enter(caller.key_id, caller.limits)
        place: Place | None = None
        record.end_phase()
        try:
            requests.check_headers(scope["headers"])
            ask = record.ask = requests.read(await read_body(receive), endpoint)
            hold_id = parse_request_id(scope["state"]["request_id"])
            record.end_phase()
            lane, model = self._find(ask, caller)
            record.lane = lane.name
            place = self.placing.at_once(lane, caller.customer_id)
            if place is None:
                place = await self.placing.in_turn(lane, caller.customer_id, receive)
            record.lane = place.lane.name
            record.end_phase()
            admitted = await self.admission.admit(hold_id, caller, ask, place.lane, model)
            record.end_phase()
            await self._exchange(ask, place.lane, admitted, record, scope, receive, send)
        except ApiError as error:
            if "x-ratelimit-limit-tokens" not in error.headers:
                error.headers |= await self.admission.limits(caller)
            error.headers |= record.limit_headers
            raise
        except ClientLeft:
            record.left()
        finally:
            if place is not None:
                place.leave()
            if use is not None:
                use.running -= 1

    def _find(self, ask: Ask, caller: Caller) -> tuple[Lane, ModelView]:
        """Return the lane that serves a caller this model, and its prices. Raises ModelNotFound."""
        lane = self.lanes.table.find(ask.model, caller.customer_id)
        model = self.prices.model(ask.model)
        if lane is None or model is None:
            raise ModelNotFound(ask.model)
        return lane, model

    async def _exchange(
        self,
        ask: Ask,
        lane: Lane,
        admitted: Admitted,
        record: Record,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        record.entry_id = str(admitted.held.entry_id)
        salt = admitted.held.customer_id if self.separate_prefix_caches else None
        exchange = Exchange(
            self.metering, self.upstream, ask, lane, admitted, salt, record, self.keep_alive_seconds
        )
        in_flight = metrics.of_lane(lane.name).in_flight
        in_flight.inc()
        try:
            await exchange.run(scope, receive, send)
        finally:
            in_flight.dec()
            record.tokens = admitted.held.tokens


async def read_body(receive: Receive) -> bytes:
    """Return a request's body. Raises TooLarge, or ClientLeft."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > requests.MAX_BODY_BYTES:
            raise requests.too_large()
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
