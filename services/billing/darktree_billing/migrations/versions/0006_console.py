"""Members of customers, sign-in links, console sessions. Who signed up has no plan until the first purchase."""

from alembic import op

revision = "0006"
down_revision = "0005"

_TABLES = """
ALTER TABLE billing.customer ALTER COLUMN plan DROP NOT NULL;

CREATE TABLE billing.member (
    id              text COLLATE "C" PRIMARY KEY,
    email           text COLLATE "C" NOT NULL UNIQUE CHECK (email = lower(email)),
    customer_id     text COLLATE "C" REFERENCES billing.customer,
    invited_by      text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_sign_in_at timestamptz
);
CREATE INDEX member_of_customer ON billing.member (customer_id, created_at, id);

CREATE TABLE billing.sign_in_link (
    digest     bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    email      text COLLATE "C" NOT NULL CHECK (email = lower(email)),
    landing    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX sign_in_link_of_email ON billing.sign_in_link (email, created_at);
CREATE INDEX sign_in_link_by_age ON billing.sign_in_link (created_at);

CREATE TABLE billing.console_session (
    digest       bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    member_id    text COLLATE "C" NOT NULL REFERENCES billing.member ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    flash        text
);
CREATE INDEX console_session_of_member ON billing.console_session (member_id);
CREATE INDEX console_session_by_end ON billing.console_session (expires_at);

REVOKE ALL ON billing.member, billing.sign_in_link, billing.console_session FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON billing.member, billing.sign_in_link, billing.console_session
    TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
