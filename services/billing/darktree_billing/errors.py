"""What billing refuses, as errors.

ApiError
├── BadRequest
│   ├── UnknownPlan      400 unknown_plan, `param` plan
│   ├── UnknownModel     400 unknown_model, `param` model
│   ├── UnreadableReport 400 unreadable_report, the message names the row and the field
│   └── ForgedEvent      400 invalid_signature
├── Forbidden
│   └── AccountFrozen    403 account_frozen
├── NotFound
│   ├── UnknownCustomer  404 unknown_customer
│   ├── UnknownKey       404 unknown_key
│   ├── UnknownRequest   404 unknown_request
│   ├── UnknownOrder     404 unknown_order
│   ├── UnknownEvent     404 unknown_event
│   ├── UnknownDispute   404 unknown_dispute
│   └── NotClosed        404 month_not_closed
├── Unavailable
│   ├── BuyingIsOff      503 buying_is_off
│   └── StripeUnavailable 503 stripe_unavailable
└── Conflict
    ├── CustomerExists   409 customer_exists, `param` names the field that differs
    ├── TooManyKeys      409 too_many_keys
    ├── ExceedsBalance   409 exceeds_balance
    ├── TooManyOpen      409 too_many_open_requests
    ├── RequestDecided   409 request_decided
    ├── NoDedicatedLane  409 no_dedicated_lane
    ├── TooManyOrders    409 too_many_open_orders
    ├── NotRefundable    409 not_refundable, the message says why
    ├── StripeRefused    409 stripe_refused, the message has Stripe's code
    ├── NotClosable      409 month_not_closable, the message says why
    └── BalanceTransactionDiffers  409 balance_transaction_differs, `param` names the field
"""

from darktree_kit.errors import BadRequest, Conflict, Forbidden, NotFound, Unavailable


class UnknownPlan(BadRequest):
    code = "unknown_plan"

    def __init__(self, plan: str, known: list[str]) -> None:
        super().__init__(f"There is no plan {plan!r}; the plans are {', '.join(known)}.", param="plan")


class UnknownModel(BadRequest):
    code = "unknown_model"

    def __init__(self, model: str, known: list[str]) -> None:
        super().__init__(f"There is no model {model!r}; the models are {', '.join(known)}.", param="model")


class UnknownCustomer(NotFound):
    code = "unknown_customer"

    def __init__(self, customer_id: str) -> None:
        super().__init__(f"There is no customer {customer_id}.", param="customer_id")


class UnknownKey(NotFound):
    code = "unknown_key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key {key_id} that may be used.", param="key_id")


class UnknownRequest(NotFound):
    code = "unknown_request"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"There is no request {request_id}.", param="request_id")


class CustomerExists(Conflict):
    code = "customer_exists"

    def __init__(self, customer_id: str, field: str) -> None:
        super().__init__(f"Customer {customer_id} exists already with another {field}.", param=field)


class TooManyKeys(Conflict):
    code = "too_many_keys"

    def __init__(self, customer_id: str, limit: int) -> None:
        super().__init__(f"Customer {customer_id} has {limit} keys in use already; revoke one first.")


class ExceedsBalance(Conflict):
    code = "exceeds_balance"

    def __init__(self, customer_id: str) -> None:
        super().__init__(
            f"Customer {customer_id} has less than that which running requests do not hold.", param="dollars"
        )


class TooManyOpen(Conflict):
    code = "too_many_open_requests"

    def __init__(self, customer_id: str, limit: int) -> None:
        super().__init__(f"Customer {customer_id} has {limit} open already: the team answers that first.")


class RequestDecided(Conflict):
    code = "request_decided"

    def __init__(self, request_id: str, state: str) -> None:
        super().__init__(f"Request {request_id} was decided before: {state}.")


class NoDedicatedLane(Conflict):
    code = "no_dedicated_lane"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The plans file has no `dedicated_lane` for {model!r}: it says what such a lane is made of.",
            param="model",
        )


class UnreadableReport(BadRequest):
    code = "unreadable_report"


class NotClosed(NotFound):
    code = "month_not_closed"

    def __init__(self, month: object) -> None:
        super().__init__(f"{month} is not closed; its preview can be had.", param="month")


class NotClosable(Conflict):
    code = "month_not_closable"


class BalanceTransactionDiffers(Conflict):
    code = "balance_transaction_differs"

    def __init__(self, transaction_id: str, field: str) -> None:
        super().__init__(f"{transaction_id} was imported before with another {field}.", param=field)


class ForgedEvent(BadRequest):
    code = "invalid_signature"


class AccountFrozen(Forbidden):
    code = "account_frozen"

    def __init__(self, customer_id: str) -> None:
        super().__init__(f"Customer {customer_id} is frozen: a payment is disputed, or the team froze it.")


class UnknownOrder(NotFound):
    code = "unknown_order"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"There is no order {order_id}.", param="order_id")


class UnknownEvent(NotFound):
    code = "unknown_event"

    def __init__(self, event_id: str) -> None:
        super().__init__(f"There is no event {event_id}.", param="event_id")


class UnknownDispute(NotFound):
    code = "unknown_dispute"

    def __init__(self, dispute_id: str) -> None:
        super().__init__(f"There is no dispute {dispute_id}.", param="dispute_id")


class TooManyOrders(Conflict):
    code = "too_many_open_orders"

    def __init__(self, customer_id: str, limit: int) -> None:
        super().__init__(
            f"Customer {customer_id} has {limit} unpaid orders of the last day; pay one of them."
        )


class NotRefundable(Conflict):
    code = "not_refundable"


class StripeRefused(Conflict):
    """Stripe will not do it, now or later. The message is ours: Stripe's own may quote what it was sent."""

    code = "stripe_refused"


class BuyingIsOff(Unavailable):
    code = "buying_is_off"

    def __init__(self) -> None:
        super().__init__("Buying is off: DARKTREE_BILLING_STRIPE_API_KEY is not set.")


class StripeUnavailable(Unavailable):
    """Stripe did not answer, or has trouble, or does not take our key."""

    code = "stripe_unavailable"
