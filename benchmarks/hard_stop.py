"""The hard stop: a thousand parallel requests against a cap for fifty of them. Tokens charged past the cap: none."""

import asyncio
from collections import Counter

import httpx
from stage import BODY, Stage

REQUESTS = 1_000
CONNECTIONS = 200
FITTING = 50
PROMPT_TOKENS = 24
COMPLETION_TOKENS = 16
CAP_TOKENS = FITTING * (PROMPT_TOKENS + COMPLETION_TOKENS)


async def run(stage: Stage) -> dict[str, object]:
    """Send them all at once and return what became of them, and what the ledger says."""
    key = await stage.customer("hard-stop", cap_tokens=CAP_TOKENS, dollars="1000")
    limits = httpx.Limits(max_connections=CONNECTIONS)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(limits=limits, timeout=120, headers=headers) as client:
        url = f"{stage.base_url}/chat/completions"
        answers = await asyncio.gather(*(client.post(url, json=BODY) for _ in range(REQUESTS)))
    answered = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    account = await stage.admin.balance("hard-stop")
    report = await stage.admin.check_ledger()
    return {
        "parallel requests": REQUESTS,
        "cap, tokens": CAP_TOKENS,
        "answers by status": dict(Counter(answer.status_code for answer in answers)),
        "tokens answered": answered,
        "tokens charged": account.day_tokens,
        "tokens past the cap": max(0, account.day_tokens - CAP_TOKENS),
        "holds left": account.open_holds,
        "ledger problems": len(report.problems),
    }
