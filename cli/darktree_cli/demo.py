"""The demo customer: made once, with one plan's worth of credits and one key that every start prints again."""

from pathlib import Path
from uuid import UUID

from darktree_billing.client import AdminClient, key_id_of
from darktree_billing.schemas import CreateCustomer, CreateKey, GrantCredits, InviteMember, PlanView
from darktree_cli.platform import TEAM_EMAIL, WEBHOOK_PATH, Plan
from darktree_cli.state import DataDir
from darktree_kit.errors import ApiError
from darktree_kit.money import format_dollars

CUSTOMER_ID = "demo"
EMAIL = "demo@example.com"  # signs in to the demo customer's console
PLAN_ID = "solo"
KEY_NAME = "demo"
# The same for every start, so that the credits are given once even to a database that outlives the data directory.
GRANT_ID = UUID("01930000-0000-7000-8000-00000064656d")
PAYING_CARD = "4242 4242 4242 4242"  # Stripe's own test number
MAX_TOKENS = 64  # what the printed examples ask for


async def ensure(admin: AdminClient, data: DataDir) -> str:
    """Return the demo customer's key, having made whatever was missing. Raises ApiError."""
    catalog = await admin.plans()
    plan = next((plan for plan in catalog.plans if plan.id == PLAN_ID), catalog.plans[0])
    await _customer(admin, plan)
    secrets = data.secrets()
    if secrets.demo_key is None or not await _is_active(admin, secrets.demo_key):
        created = await admin.create_key(CUSTOMER_ID, CreateKey(name=KEY_NAME))
        secrets = secrets.model_copy(update={"demo_key": created.key})
        data.keep(secrets)
    assert secrets.demo_key is not None
    return secrets.demo_key


def welcome(planned: Plan, key: str, mailbox: Path, seconds: float) -> str:
    """Return what a first user needs, to be copied as it stands."""
    base_url, model = planned.base_url, planned.demo_model
    return f"""
Darktree is ready, {seconds:.1f} s after it was started.

  endpoint  {base_url}
  key       {key}
  console   {planned.console_url}

{_buying(planned, mailbox)}

Ask with curl:

curl -s {base_url}/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "max_tokens": {MAX_TOKENS}, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

Or with OpenAI's library for Python:

from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}",
    max_tokens={MAX_TOKENS},
    messages=[{{"role": "user", "content": "Hello!"}}],
)
print(answer.choices[0].message.content)
print(answer.usage)

Look around with `darktree doctor` and `darktree ledger balance {CUSTOMER_ID}`. Ctrl-C stops everything.
"""


def _buying(planned: Plan, mailbox: Path) -> str:
    if planned.stripe_url is not None:
        how = (
            f"card {PAYING_CARD} pays, and nothing is charged: Stripe is a stand-in at {planned.stripe_url}."
        )
    else:
        how = (
            f"card {PAYING_CARD} pays, and Stripe keeps the books of your test account. Its events come with\n"
            f"`stripe listen --forward-to {planned.billing_url}{WEBHOOK_PATH}`."
        )
    return f"""Buy credits in the console: sign in with any e-mail address (the link comes to
{mailbox}; {EMAIL} is this customer, and
{TEAM_EMAIL} the platform's team, at {planned.billing_url}/admin),
{how}"""


async def _customer(admin: AdminClient, plan: PlanView) -> None:
    try:
        await admin.customer(CUSTOMER_ID)
    except ApiError as error:
        if error.answer_status != 404:
            raise
        await admin.create_customer(CreateCustomer(id=CUSTOMER_ID, name="Demo", plan=plan.id))
    try:
        await admin.invite_member(CUSTOMER_ID, InviteMember(email=EMAIL))
    except ApiError as error:
        if error.answer_status != 409:  # signed up as somebody else
            raise
    # Repeated on every start, in case the last one was cut off between the two.
    grant = GrantCredits(dollars=format_dollars(plan.price_nanos), reason="demo", grant_id=GRANT_ID)
    try:
        await admin.grant(CUSTOMER_ID, grant)
    except ApiError as error:
        if error.answer_status != 409:  # given before, when the plan had another price
            raise


async def _is_active(admin: AdminClient, key: str) -> bool:
    page = await admin.keys(CUSTOMER_ID, limit=1_000)
    return any(known.id == key_id_of(key) and known.status == "active" for known in page.data)
