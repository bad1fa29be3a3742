"""The page where a payer pays, and a receipt: plain HTML that works without JavaScript."""

from html import escape
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from darktree_stripe_simulator import sessions
from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.api import read_body
from darktree_stripe_simulator.methods import CARD, DEFAULT, UnusableNumber, method

PLACEHOLDER = "{CHECKOUT_SESSION_ID}"
_NAMES = {
    "card": ("Card", "Card number"),
    "us_bank_account": ("US bank account", "Account number"),
    "sepa_debit": ("SEPA direct debit", "IBAN"),
}
_HELP = {
    "card": "4242 4242 4242 4242 pays, 4000 0000 0000 0002 is declined, 4000 0000 0000 0259 is disputed.",
    "us_bank_account": "000123456789 pays after a while, 000111111116 fails after a while.",
    "sepa_debit": "AT611904300234573201 pays after a while, AT861904300235473202 fails after a while.",
}
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 30rem; padding: 1.5rem; }
h1 { font-size: 1.25rem; } .total { font-size: 2rem; font-weight: 600; margin: 0; }
.note, small { color: #595f69; } @media (prefers-color-scheme: dark) { .note, small { color: #a6adba; } }
.problem { border-left: 4px solid #b3261e; padding: .25rem .75rem; }
label, legend { display: block; font-weight: 600; margin-top: 1rem; } legend { margin: 0; }
fieldset { border: 1px solid #8b919c; border-radius: .375rem; margin: 1.25rem 0 0; padding: .25rem 1rem 1rem; }
fieldset label { font-weight: 400; margin-top: 0; } legend label { font-weight: 600; }
input[type=text], input[type=email] { box-sizing: border-box; font: inherit; padding: .5rem; width: 100%; }
button { background: #1f4fd8; border: 0; border-radius: .375rem; color: #fff; cursor: pointer; font: inherit;
  font-weight: 600; margin-top: 1.5rem; padding: .75rem; width: 100%; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem 0; text-align: left; }
td + td { text-align: right; }
"""


class Pages:
    """What a browser sees of the stand-in."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def pay(self, request: Request) -> Response:
        session = self._account.objects.get(request.path_params["id"])
        if session is None or session["object"] != "checkout.session":
            return _page("No such payment", "<p>This link leads to no payment.</p>", 404)
        if session["status"] == "complete":
            return RedirectResponse(success_url(session), 303)
        if session["status"] == "expired":
            return _page(
                "Expired", "<p>This payment was not made in time. Begin again where you came from.</p>", 410
            )
        if request.method == "GET":
            return self._form(session, {})
        form = {name: values[0] for name, values in parse_qs((await read_body(request)).decode()).items()}
        return self._try(session, form)

    async def receipt(self, request: Request) -> Response:
        charge = self._account.objects.get(request.path_params["id"])
        if charge is None or charge["object"] != "charge" or charge["status"] != "succeeded":
            return _page("No such receipt", "<p>This link leads to no receipt.</p>", 404)
        kind = charge["payment_method_details"]["type"]
        rows = {
            "Amount paid": money(charge["amount"], charge["currency"]),
            "Amount refunded": money(charge["amount_refunded"], charge["currency"]),
            "Payment method": f"{_NAMES[kind][0]} ending in {charge['payment_method_details'][kind]['last4']}",
            "Payment": charge["id"],
        }
        cells = "".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in rows.items()
        )
        return _page("Receipt", f"<table>{cells}</table>")

    def _try(self, session: Object, form: dict[str, str]) -> Response:
        kind = form.get("method", CARD)
        if kind not in session["payment_method_types"]:
            return self._form(session, form, "Choose how to pay.")
        try:
            chosen = method(kind, form.get(f"number_{kind}") or None)
        except UnusableNumber as error:
            return self._form(session, form, str(error))
        payer = {"email": session["customer_email"] or form.get("email", ""), "name": form.get("name", "")}
        if not payer["email"]:
            return self._form(session, form, "Your e-mail address is missing.")
        self._account.request = {"id": None, "idempotency_key": None}
        charge = sessions.pay(self._account, session, chosen, payer)
        if charge["status"] == "failed":
            return self._form(session, form, charge["failure_message"])
        return RedirectResponse(success_url(session), 303)

    def _form(self, session: Object, form: dict[str, str], problem: str = "") -> Response:
        items = "".join(
            f"<tr><td>{escape(item['description'])} × {item['quantity']}</td>"
            f"<td>{money(item['amount_subtotal'], item['currency'])}</td></tr>"
            for item in sessions.line_items(self._account, session)
        )
        tax = ""
        if session["automatic_tax"]["status"] == "complete":
            amount = money(session["total_details"]["amount_tax"], session["currency"])
            items += f"<tr><td>Tax</td><td>{amount}</td></tr>"
        elif session["automatic_tax"]["enabled"]:
            tax = "<p class='note'>Tax is added when you pay.</p>"
        shown = f"<p class='problem' role='alert'>{escape(problem)}</p>" if problem else ""
        back = (
            f"<p><a href='{escape(session['cancel_url'])}'>Back, without paying</a></p>"
            if session["cancel_url"]
            else ""
        )
        total = money(session["amount_total"], session["currency"])
        body = (
            "<p class='note'>A stand-in for Stripe: nothing is charged.</p>"
            f"<p class='total'>{total}</p><table>{items}</table>{tax}{shown}"
            f"<form method='post'>{_payer(session, form)}{_methods(session, form)}"
            f"<button type='submit'>Pay {total}</button></form>{back}"
        )
        return _page("Pay", body)


def success_url(session: Object) -> str:
    return str(session["success_url"]).replace(PLACEHOLDER, session["id"])


def money(cents: int, currency: str) -> str:
    sign = {"usd": "$", "eur": "€"}.get(currency)
    amount = f"{cents // 100:,}.{cents % 100:02}"
    return f"{sign}{amount}" if sign else f"{amount} {currency.upper()}"


def _payer(session: Object, form: dict[str, str]) -> str:
    if session["customer_email"]:
        email = f"<p class='note'>{escape(session['customer_email'])}</p>"
    else:
        email = (
            "<label for='email'>E-mail</label><input id='email' name='email' type='email' autocomplete='email' "
            f"required value='{escape(form.get('email', ''))}'>"
        )
    name = escape(form.get("name", ""))
    return (
        f"{email}<label for='name'>Name</label>"
        f"<input id='name' name='name' type='text' autocomplete='name' value='{name}'>"
    )


def _methods(session: Object, form: dict[str, str]) -> str:
    chosen = form.get("method", session["payment_method_types"][0])
    parts = []
    for kind in session["payment_method_types"]:
        title, label = _NAMES[kind]
        checked = " checked" if kind == chosen else ""
        number = escape(form.get(f"number_{kind}", DEFAULT[kind]))
        parts.append(
            f"<fieldset><legend><input type='radio' id='method_{kind}' name='method' value='{kind}'{checked}> "
            f"<label for='method_{kind}' style='display:inline'>{title}</label></legend>"
            f"<label for='number_{kind}'>{label}</label>"
            f"<input id='number_{kind}' name='number_{kind}' type='text' autocomplete='off' "
            f"aria-describedby='help_{kind}' value='{number}'><small id='help_{kind}'>{_HELP[kind]}</small></fieldset>"
        )
    return "".join(parts)


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    content = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><style>{_STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>{body}</main></body></html>"
    )
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(content, status, headers=headers)
