"""What a billing process is told by its environment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from darktree_kit.settings import DatabaseSettings, prefixed

MAX_WEBHOOK_SECRETS = 8  # the present one, and those that are being rotated out


def webhook_secrets(setting: SecretStr) -> list[str]:
    """Return the secrets that commas stand between."""
    return [part.strip() for part in setting.get_secret_value().split(",") if part.strip()]


class Settings(DatabaseSettings):
    """`DARKTREE_BILLING_*`. An empty token admits nobody; of several, with commas between, each admits."""

    model_config = prefixed("billing")

    ledger_url: str
    """Where the ledger answers; several, with commas between, share the customers (docs/scale.md)."""
    ledger_token: SecretStr
    """Sent to the ledger: its token for billing."""
    gateway_token: SecretStr
    """Admits gateways. New and old, with a comma between, while it is replaced."""
    admin_token: SecretStr
    """Admits administrators. New and old, with a comma between, while it is replaced."""
    plans_file: Path
    """Plans, models and prices (YAML), read again when the file changes."""
    # The pepper keeps a copy of the database from being enough to test a guess at a key. It is rotated in three steps,
    # so that replicas of two steps understand each other: docs/operations.md.
    key_pepper: Annotated[SecretStr, Field(min_length=16)]
    """The secret under which keys are stored; 16 characters or more."""
    key_pepper_version: Annotated[int, Field(ge=1, le=32_767)] = 1
    """Which pepper that is, counted from 1."""
    key_pepper_previous: Annotated[SecretStr, Field(min_length=16)] | None = None
    """The pepper of the version before, while keys move to the present one."""
    key_pepper_next: Annotated[SecretStr, Field(min_length=16)] | None = None
    """The pepper of the version after: every replica must know it before one makes it the present one."""
    books_key_file: Path | None = None
    """The signer key (Ed25519, as signed notes write it) of statements and close packs; without it none is signed."""
    reconcile_seconds: float = Field(3600.0, gt=0)
    """The pause between two comparisons of the ledger with engines and Stripe."""
    reconcile_share: float = Field(0.02, ge=0, le=1)
    """Which share of a lane's tokens in a day may differ between its engines and the ledger."""
    reconcile_slack_tokens: int = Field(10_000, ge=0)
    """How many tokens may differ beside that: answers that are on their way."""
    expiries_seconds: float = Field(600.0, gt=0)
    """The pause between two looks at certificates and keys that end by themselves."""
    seller_name: Annotated[str, Field(min_length=1, max_length=200)] = "Darktree"
    """Who sells: the name that stands on statements."""
    books_file: Path | None = None
    """How accounts are named in the bookkeeper's books (YAML); without it as `examples/books.yaml` says."""
    public_url: Annotated[str, Field(pattern=r"^(https?://[^/\s?#]+)?$")] = ""
    """Where people reach the console, such as `https://darktree.example`; empty: on this machine only."""
    api_url: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """Where customers' programs call the API, such as `https://api.darktree.example/v1`; the console shows it."""
    team_emails: str = ""
    """Who may sign in as the platform team: e-mail addresses, with commas between."""
    mail_file: Path | None = None
    """A file to which mails are added instead of being sent: for one machine and for tests."""
    smtp_url: SecretStr | None = None
    """The mail server: `smtps://user:password@host:465`, or `smtp://` with STARTTLS, or `smtp+plain://` without TLS."""
    mail_from: Annotated[str, Field(pattern=r"^[^\s<>,]+@[^\s<>,]+$")] = "darktree@localhost"
    """The sender of mails."""
    links_per_address: int = Field(20, ge=1)
    """How many sign-in links one network address may ask for in a quarter of an hour; raise it behind a proxy."""
    stripe_api_key: SecretStr | None = None
    """Stripe's secret key (a restricted one is enough: docs/payments.md); without it buying is off."""
    stripe_api_base: Annotated[str, Field(pattern=r"^(https?://[^/\s?#]+)?$")] = ""
    """Where Stripe's API is: empty for Stripe's own, else a stand-in for it."""
    stripe_webhook_secrets: SecretStr = SecretStr("")
    """The signing secrets of the webhook endpoint, newest first, with commas between; empty: no event is taken."""
    stripe_webhook_tolerance_seconds: int = Field(300, gt=0, le=3_600)
    """How old the signature of an event may be."""
    stripe_automatic_tax: bool = False
    """Let Stripe Tax add sales tax; it is owed to others and never becomes credits."""
    stripe_tax_code: Annotated[str, Field(pattern=r"^(txcd_[0-9]{8})?$")] = ""
    """Stripe's product tax code of credits, such as `txcd_10103001`; empty: the account's default."""
    stripe_poll_seconds: float = Field(300.0, gt=0)
    """The pause between two sweeps, which ask Stripe for what no webhook brought."""
    # Stripe keeps events for thirty days, and a sweep asks for those: none that is forgotten can come again.
    stripe_event_days: int = Field(400, ge=60)
    """For how many days an event is kept once it was handled; one that was given up stays."""
    stripe_workers: int = Field(2, ge=0, le=16)
    """How many events this process handles at the same time; 0 leaves events and sweeps to other processes."""

    @field_validator("stripe_webhook_secrets")
    @classmethod
    def _few_secrets(cls, setting: SecretStr) -> SecretStr:
        if len(webhook_secrets(setting)) > MAX_WEBHOOK_SECRETS:
            raise ValueError(f"more than {MAX_WEBHOOK_SECRETS} secrets")
        return setting
