# The images of hotnic: target `hotnic` has the roles and the command line, `hotnic-lab` adds the development cluster.
# `make image` builds both; scripts/image/build passes the settings of this machine's package index as secrets, so that
# no layer contains them. The stages run with Python's own images and with Debian's Python (BASE_IMAGE, BUILDER_IMAGE).
ARG BASE_IMAGE=python:3.13.14-slim-bookworm
# The same Python and Debian with what the build needs: venv, binutils, the interpreter's shared library.
ARG BUILDER_IMAGE=python:3.13.14-bookworm
# The shim needs a C library on the node that is at least as new as this image's: 2.31, as Ubuntu 20.04 has it.
ARG SHIM_BUILDER_IMAGE=python:3.11.13-bullseye

# --- The build tools, in an environment of their own: /opt/hotnic contains no pip.
FROM ${BUILDER_IMAGE} AS builder
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/hotnic
WORKDIR /src
COPY requirements-build.lock scripts/image/install ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt --mount=type=cache,target=/root/.cache/pip \
    ./install tools requirements-build.lock

# --- hotnic's dependencies: a layer that changes with the lock file alone.
FROM builder AS dependencies
COPY requirements.lock ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt --mount=type=cache,target=/root/.cache/pip \
    ./install lock requirements.lock /

# --- What the lab adds to them.
FROM dependencies AS lab-dependencies
COPY requirements-lab.lock ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt --mount=type=cache,target=/root/.cache/pip \
    rm /wheels/* && ./install lock requirements-lab.lock /staging

# --- The multus shim as one executable, for nodes without Python.
FROM ${SHIM_BUILDER_IMAGE} AS shim
RUN python3 -m venv /opt/build
WORKDIR /src
COPY requirements-build.lock scripts/image/install ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt --mount=type=cache,target=/root/.cache/pip \
    ./install tools requirements-build.lock
COPY scripts/image/shim scripts/image/
COPY services/multus/container_runtime/shim.py services/multus/container_runtime/
RUN PYTHON=/opt/build/bin/python scripts/image/shim --build-only

# --- hotnic itself, and the lab, from their wheels.
FROM builder AS application
COPY LICENSE NOTICE README.md pyproject.toml ./
COPY schemas schemas
COPY services services
RUN ./install project . /staging

FROM builder AS lab-application
COPY LICENSE NOTICE ./
COPY k8s/examples k8s/examples
COPY k8s/files k8s/files
COPY lab lab
RUN ./install project lab /staging

# --- What both images have in common.
FROM ${BASE_IMAGE} AS runtime
# All bytecode is in the image; the root file system may be read-only. The node that gets the shim needs no Python.
# Blocks from 128 KiB on go back to the kernel when they are freed. By default glibc raises that limit, and a table that
# Python replaces every few thousand attachments then leaves a hole of its size in the heap.
ENV PATH=/opt/hotnic/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_MMAP_THRESHOLD_=131072 \
    HOTNIC_SHIM=/opt/hotnic/share/hotnic-multus
WORKDIR /
ENTRYPOINT ["hotnic"]
LABEL org.opencontainers.image.licenses="Apache-2.0"

# --- The production image. Nothing is executed in it, and it contains no compiler, pip or cache that the base lacks.
FROM runtime AS hotnic
LABEL org.opencontainers.image.title="hotnic" \
      org.opencontainers.image.description="Plug network interfaces into running virtual machines on Kubernetes"
COPY --from=dependencies /opt/hotnic /opt/hotnic
COPY --from=shim /src/build/shim-static/hotnic-multus /opt/hotnic/share/hotnic-multus
COPY --from=application /staging/opt/hotnic /opt/hotnic
# The node roles run as root with named capabilities, which docker-compose.yml and the chart set.
USER 65532:65532

# --- The lab's image. It is not built on the production image, because a change of the code would then install QEMU
# again. Its tools, besides QEMU and network tools from Debian, are those of the machine that builds: see
# scripts/image/build.
FROM runtime AS hotnic-lab
LABEL org.opencontainers.image.title="hotnic-lab" \
      org.opencontainers.image.description="A Kubernetes cluster on one machine, for the development of hotnic"
RUN --mount=type=secret,id=ca.crt \
    if [ -s /run/secrets/ca.crt ]; then set -- -o Acquire::https::CAInfo=/run/secrets/ca.crt; fi \
    && apt-get "$@" -qq update \
    && DEBIAN_FRONTEND=noninteractive apt-get "$@" -qq install -y --no-install-recommends \
        iproute2 iptables qemu-system-x86 >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*
COPY --from=dependencies /opt/hotnic /opt/hotnic
COPY --from=lab-dependencies /staging/opt/hotnic /opt/hotnic
COPY build/image/lab-tools /opt/hotnic-lab/tools
COPY --from=shim /src/build/shim-static/hotnic-multus /opt/hotnic/share/hotnic-multus
COPY --from=application /staging/opt/hotnic /opt/hotnic
COPY --from=lab-application /staging/opt/hotnic /opt/hotnic
ENV HOTNIC_TOOLS=/opt/hotnic-lab/tools \
    HOTNIC_LAB_DIR=/var/lib/hotnic-lab
