"""Which pepper a key was stored under, so that it can be rotated, and the day of a key's last use."""

from alembic import op

revision = "0002"
down_revision = "0001"

# The default stays: every key from before has the first pepper, and so has one that a process of the release
# before inserts while this one is being rolled out.
_COLUMNS = """
ALTER TABLE billing.api_key
    ADD COLUMN pepper_version smallint NOT NULL DEFAULT 1 CHECK (pepper_version >= 1),
    ADD COLUMN last_used_day date;
"""


def upgrade() -> None:
    op.execute(_COLUMNS)
