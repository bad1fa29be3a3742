"""`python -m darktree_ledger`: the ledger's process."""

from darktree_kit import logs, server, tracing
from darktree_ledger.app import make_app
from darktree_ledger.settings import Settings


def main() -> None:
    settings = Settings()
    logs.configure("ledger", settings.log_level)
    tracing.configure("ledger", settings)
    server.serve(make_app(settings), [server.listen(settings.host, settings.port)])


main()
