"""Stripe's events are kept for a time and then deleted: they say where to look, and what was found is in orders."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("GRANT DELETE ON billing.stripe_event TO darktree_billing")
