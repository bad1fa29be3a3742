"""`python -m darktree_operator`: what the chart runs; the same as `kopf run -m darktree_operator.main`."""

import kopf

from darktree_operator import main as main  # kopf finds its handlers by the import
from darktree_operator.settings import Settings


def run() -> None:
    """Serve until told to stop."""
    settings = Settings()
    kopf.run(
        standalone=True,
        clusterwide=not settings.namespace,
        namespaces=[settings.namespace] if settings.namespace else [],
        liveness_endpoint=settings.liveness_url or None,
    )


if __name__ == "__main__":
    run()
