"""What billing refuses, as errors.

ApiError
├── BadRequest
│   ├── UnknownPlan      400 unknown_plan, `param` plan
│   ├── UnknownModel     400 unknown_model, `param` model
│   └── UnreadableReport 400 unreadable_report, the message names the row and the field
├── NotFound
│   ├── UnknownCustomer  404 unknown_customer
│   ├── UnknownKey       404 unknown_key
│   ├── UnknownRequest   404 unknown_request
│   └── NotClosed        404 month_not_closed
└── Conflict
    ├── CustomerExists   409 customer_exists, `param` names the field that differs
    ├── TooManyKeys      409 too_many_keys
    ├── ExceedsBalance   409 exceeds_balance
    ├── TooManyOpen      409 too_many_open_requests
    ├── RequestDecided   409 request_decided
    ├── NoDedicatedLane  409 no_dedicated_lane
    ├── NotClosable      409 month_not_closable, the message says why
    └── BalanceTransactionDiffers  409 balance_transaction_differs, `param` names the field
"""

from darktree_kit.errors import BadRequest, Conflict, NotFound


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
