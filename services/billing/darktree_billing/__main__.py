"""`python -m darktree_billing`: the billing service, as its environment says."""

from darktree_billing.app import make_app
from darktree_billing.books_key import BooksKeyError
from darktree_billing.chart import ChartError
from darktree_billing.console.addresses import AddressError
from darktree_billing.console.mail import MailError
from darktree_billing.plans import PlansError
from darktree_billing.settings import Settings
from darktree_kit import logs, server, tracing


def main() -> None:
    settings = Settings()
    logs.configure("billing", settings.log_level)
    tracing.configure("billing", settings, at_edge=True)
    try:
        app = make_app(settings)
    except (PlansError, BooksKeyError, ChartError, AddressError, MailError) as error:
        raise SystemExit(f"billing does not start: {error}") from None
    server.serve(app, [server.listen(settings.host, settings.port)])


if __name__ == "__main__":
    main()
