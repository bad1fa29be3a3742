"""How many requests a customer's keys may send, where it is not what the plan says."""

from alembic import op

revision = "0008"
down_revision = "0007"

_COLUMNS = """
ALTER TABLE billing.customer
    ADD COLUMN requests_per_minute integer CHECK (requests_per_minute >= 0),
    ADD COLUMN concurrent_requests integer CHECK (concurrent_requests >= 0);
"""


def upgrade() -> None:
    op.execute(_COLUMNS)
