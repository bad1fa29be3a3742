"""`darktree selftest`: one real completion of every model, and the ledger's line for each; what `helm test` runs.

It buys nothing: its customer is given a little credit by hand when it has none, which is bonus and never revenue. Its
key is revoked at the end, whatever happened.
"""

import asyncio
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from darktree_billing.client import AdminClient
from darktree_billing.schemas import CreateCustomer, CreateKey, GrantCredits
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, dollars, show
from darktree_kit.errors import ApiError
from darktree_kit.http import InternalClient
from darktree_kit.money import NANOS_PER_DOLLAR
from darktree_ledger.schemas import EntryView

CUSTOMER_ID = "darktree-selftest"
GRANT_DOLLARS = 1
LEAST_NANOS = NANOS_PER_DOLLAR // 2
MAX_TOKENS = 8
ANSWER_SECONDS = 120.0  # a lane that sleeps may have to start
QUESTION = "Say that you are there."


@dataclass(frozen=True)
class Tried:
    """One model: what answered, what it used, what was charged. `problem` says what is wrong, if anything."""

    model: str
    lane: str = ""
    tokens: int = 0
    amount_nanos: int = 0
    entry_id: str = ""
    problem: str = ""


def command(
    api: Annotated[str, typer.Option(help="The endpoint, such as https://api.darktree.example/v1.")],
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Ask every model once, and compare what it says it used with the line that the ledger has of it."""
    results = administer(data_dir, lambda admin: _try_all(admin, api.rstrip("/").removesuffix("/v1")))
    answer = {
        "ok": all(not tried.problem for tried in results),
        "models": [asdict(tried) for tried in results],
    }
    rows = [
        (each.model, each.lane, each.tokens, dollars(each.amount_nanos), each.entry_id, each.problem or "ok")
        for each in results
    ]
    show(output, answer, ("model", "lane", "tokens", "charged", "entry", "state"), rows)
    if not answer["ok"]:
        raise typer.Exit(1)


async def _try_all(admin: AdminClient, base_url: str) -> list[Tried]:
    await _prepare(admin)
    created = await admin.create_key(CUSTOMER_ID, CreateKey(name="selftest"))
    try:
        async with InternalClient(
            base_url, created.key, service="gateway", timeout=ANSWER_SECONDS
        ) as gateway:
            listed = await gateway.call_json("GET", "/v1/models")
            models = [card["id"] for card in listed["data"]]
            if not models:
                return [Tried("(none)", problem="no lane serves anything: apply one, see docs/lanes.md")]
            # One after the other: the newest line of the ledger is then this question's.
            return [await _try(admin, gateway, model) for model in models]
    finally:
        await asyncio.shield(admin.revoke_key(created.id))


async def _prepare(admin: AdminClient) -> None:
    """Have a customer with some credit and room under its cap."""
    plan = (await admin.plans()).plans[0]
    await admin.create_customer(CreateCustomer(id=CUSTOMER_ID, name="Self-test", plan=plan.id))
    if (await admin.balance(CUSTOMER_ID)).balance_nanos < LEAST_NANOS:
        await admin.grant(CUSTOMER_ID, GrantCredits(dollars=str(GRANT_DOLLARS), reason="selftest"))


async def _try(admin: AdminClient, gateway: InternalClient, model: str) -> Tried:
    before = await admin.balance(CUSTOMER_ID)
    question = {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    try:
        answer = await gateway.call_json("POST", "/v1/chat/completions", json=question)
    except ApiError as error:
        return Tried(model, problem=error.message)
    used = answer["usage"]
    entry = (await admin.entries(CUSTOMER_ID, limit=1)).data[0]
    after = await admin.balance(CUSTOMER_ID)
    return Tried(
        model=model,
        lane=entry.lane or "",
        tokens=used["total_tokens"],
        amount_nanos=entry.amount_nanos,
        entry_id=str(entry.entry_id),
        problem="; ".join(_differences(entry, model, used, before.balance_nanos - after.balance_nanos)),
    )


def _differences(entry: EntryView, model: str, used: dict[str, Any], taken_nanos: int) -> list[str]:
    """Say in what the ledger's line differs from the answer, from the price, and from what the balance lost."""
    price_nanos = (
        entry.prompt_tokens * entry.prompt_price_nanos
        + entry.completion_tokens * entry.completion_price_nanos
    )
    compared = [
        ("kind", entry.kind, "usage"),
        ("model", entry.model, model),
        ("prompt tokens", entry.prompt_tokens, used["prompt_tokens"]),
        ("completion tokens", entry.completion_tokens, used["completion_tokens"]),
        ("amount", entry.amount_nanos, price_nanos),
        ("balance", taken_nanos, entry.amount_nanos),
    ]
    return [
        f"{what}: {found} in the ledger, not {wanted}" for what, found, wanted in compared if found != wanted
    ]
