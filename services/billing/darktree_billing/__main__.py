"""`python -m darktree_billing`: the billing service, as its environment says."""

from darktree_billing.app import make_app
from darktree_billing.settings import Settings
from darktree_kit import logs, server


def main() -> None:
    settings = Settings()
    logs.configure("billing", settings.log_level)
    server.serve(make_app(settings), [server.listen(settings.host, settings.port)])


if __name__ == "__main__":
    main()
