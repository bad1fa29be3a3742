"""`python -m darktree_gateway`: the gateway's process, as its environment says."""

from darktree_gateway.app import make_app
from darktree_gateway.settings import Settings
from darktree_kit import logs, server, tracing


def main() -> None:
    settings = Settings()
    logs.configure("gateway", settings.log_level)
    tracing.configure("gateway", settings, at_edge=True)
    listeners = [server.listen(settings.host, settings.port, shared=settings.shared_port)]
    if settings.private_port:
        listeners.append(server.listen(settings.host, settings.private_port))
    server.serve(
        make_app(settings),
        listeners,
        leaving_seconds=settings.leaving_seconds,
        shutdown_seconds=settings.shutdown_seconds,
    )


if __name__ == "__main__":
    main()
