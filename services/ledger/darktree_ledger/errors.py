"""What the ledger refuses, as errors.

ApiError
├── NotFound
│   ├── UnknownCustomer   404 unknown_customer
│   └── NotInTheLog       404 not_in_the_log: not sealed, or not covered by a checkpoint yet
└── Conflict
    └── OperationConflict 409 idempotency_conflict, `param` names the field
"""

from darktree_kit.errors import Conflict, NotFound


class UnknownCustomer(NotFound):
    code = "unknown_customer"

    def __init__(self, customer_id: str) -> None:
        super().__init__(f"The ledger has no account of customer {customer_id}.", param="customer_id")


class OperationConflict(Conflict):
    code = "idempotency_conflict"


class NotInTheLog(NotFound):
    code = "not_in_the_log"
