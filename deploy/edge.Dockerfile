# The edge node. Build from the root of the checkout, after `make wheels`:
#   docker build -f deploy/edge.Dockerfile -t tiermesh-edge .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
COPY wheels/edge /wheels
# --no-deps: the wheelhouse is the resolution, so a missing wheel shows in `pip check` below and not as a download.
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM dependencies AS application
COPY wheels/app /app
RUN /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps --prefix /opt/app /app/*.whl \
    && cp -r /opt/app/. /opt/venv && /opt/venv/bin/pip check

FROM ${BASE_IMAGE}
RUN groupadd --system --gid 10001 tiermesh \
    && useradd --system --uid 10001 --gid tiermesh --no-create-home --home-dir /nonexistent tiermesh \
    && install -d -o tiermesh -g tiermesh /var/lib/tiermesh
# The large layer first: it stays as it is until a dependency changes.
COPY --from=dependencies /opt/venv /opt/venv
COPY deploy/healthcheck.py /opt/healthcheck.py
COPY --from=application /opt/app /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# onnxruntime 1.31 reports its use to its maker unless told not to; an edge node talks to its router alone.
ENV ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /var/lib/tiermesh
EXPOSE 7070 9070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "/opt/healthcheck.py", "127.0.0.1:7070"]
ENTRYPOINT ["python", "-P", "-m", "tiermesh.edge.main"]
