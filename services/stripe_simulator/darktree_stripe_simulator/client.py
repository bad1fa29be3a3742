"""The other end of `/_control`: how a test pays, disputes, pays out, and decides what reaches the webhook."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

Object = dict[str, Any]

TIMEOUT_SECONDS = 60


class ControlError(Exception):
    """The stand-in refused; the message is its own."""


@dataclass(frozen=True)
class SignedEvent:
    """An event as it would be sent now: `payload` goes to the webhook as it is, with `headers`."""

    id: str
    type: str
    payload: bytes
    headers: dict[str, str]
    taken: bool  # the webhook has answered 2xx

    @property
    def object(self) -> Object:
        """What the event is about, as it was then."""
        found: Object = json.loads(self.payload)["data"]["object"]
        return found


class StripeStandIn:
    """A running stand-in. `url` is the API's address for the real library, `key` its secret key."""

    def __init__(self, url: str, key: str, webhook_secret: str) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self.webhook_secret = webhook_secret

    def pay(
        self,
        session: str,
        *,
        method: str = "card",
        number: str | None = None,
        email: str = "payer@example.com",
        name: str = "Pat Payer",
    ) -> Object:
        """Pay a Checkout Session as its page does, and return it. A declined card leaves it open."""
        body = {"method": method, "number": number, "email": email, "name": name}
        return self._post(f"sessions/{session}/pay", body)

    def settle(self, payment_intent: str, outcome: str = "succeeded") -> Object:
        """End a delayed payment: `succeeded` or `failed`."""
        return self._post(f"payment_intents/{payment_intent}/settle", {"outcome": outcome})

    def settle_refund(self, refund: str, outcome: str = "succeeded") -> Object:
        return self._post(f"refunds/{refund}/settle", {"outcome": outcome})

    def dispute(
        self,
        charge: str,
        *,
        reason: str = "fraudulent",
        amount: int | None = None,
        inquiry: bool = False,
        withdraw: bool = True,
    ) -> Object:
        """Dispute a charge. An inquiry moves no money; else amount and fee are withdrawn."""
        body = {"reason": reason, "amount": amount, "inquiry": inquiry, "withdraw": withdraw}
        return self._post(f"charges/{charge}/dispute", body)

    def withdraw(self, dispute: str) -> Object:
        return self._post(f"disputes/{dispute}/withdraw", {})

    def escalate(self, dispute: str) -> Object:
        """Make an inquiry a chargeback."""
        return self._post(f"disputes/{dispute}/escalate", {})

    def close_dispute(self, dispute: str, status: str, *, return_fee: bool = False) -> Object:
        """Decide a dispute: `won`, `lost`, or an inquiry's `warning_closed`."""
        return self._post(f"disputes/{dispute}/close", {"status": status, "return_fee": return_fee})

    def payout(self, *, everything: bool = True, arrive: bool = True) -> Object:
        """Pay out automatically what is available, with `everything` also what is pending."""
        return self._post("payouts", {"everything": everything, "arrive": arrive})

    def arrive(self, payout: str) -> Object:
        return self._post(f"payouts/{payout}/arrive", {})

    def fail_payout(self, payout: str) -> Object:
        return self._post(f"payouts/{payout}/fail", {})

    def advance(self, seconds: int) -> int:
        """Move the stand-in's clock, do what is due by then, and return its Unix seconds."""
        return int(self._post("clock", {"advance_seconds": seconds})["now"])

    def send_to(self, url: str, secrets: Sequence[str] | None = None) -> None:
        """Send events there from now on, signed with these secrets."""
        self._post("webhook", {"url": url, "secrets": list(secrets) if secrets else None})

    def delivery(self, **rules: Any) -> Object:
        """Change how events are delivered: mode, delay_seconds, order, duplicates, drop, drop_types."""
        return self._post("delivery", rules)

    def deliver(
        self,
        events: Sequence[str] | None = None,
        *,
        times: int = 1,
        at_once: bool = False,
        signed_seconds_ago: int = 0,
    ) -> list[int]:
        """Send events now, those that the webhook has not taken unless named; return the statuses it answered."""
        body = {
            "events": list(events) if events is not None else None,
            "times": times,
            "at_once": at_once,
            "signed_seconds_ago": signed_seconds_ago,
        }
        return [int(result["status"]) for result in self._post("deliver", body)["results"]]

    def events(self, *types: str, signed_seconds_ago: int = 0) -> list[SignedEvent]:
        """Return every event (of these types), the oldest first, signed now or so long ago."""
        found = self._call("GET", f"events?signed_seconds_ago={signed_seconds_ago}", None)
        return [
            SignedEvent(
                event["id"], event["type"], event["payload"].encode(), event["headers"], event["taken"]
            )
            for event in found
            if not types or event["type"] in types
        ]

    def fault(
        self, kind: str = "refused", *, status: int = 500, method: str = "", path: str = "", times: int = 1
    ) -> None:
        """Let the next requests fail: `refused` before, `failed` or `lost` after they were executed."""
        body = {"kind": kind, "status": status, "method": method, "path": path, "times": times}
        self._call("POST", "faults", body)

    def clear_faults(self) -> None:
        self._call("DELETE", "faults", None)

    def _post(self, path: str, body: Object) -> Object:
        answer: Object = self._call("POST", path, body)
        return answer

    def _call(self, method: str, path: str, body: Object | None) -> Any:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(
                method,
                f"/_control/{path}",
                json.dumps(body) if body is not None else None,
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            content = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status >= 400:
            raise ControlError(content["error"]["message"])
        return content
