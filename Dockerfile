# syntax=docker/dockerfile:1
#
# One file for workstations and Jetsons; the base image decides. Not built in CI (see README.md).
#
#   x86, NVIDIA GPU (TensorRT from pip):
#     docker build -t trt-layermerge .
#   Jetson, JetPack 6 (JETPACK_IMAGE is NVIDIA's l4t-jetpack image of the release on the device, with
#   TensorRT; torch must be a Jetson build, given as a wheel URL or file name in the build context):
#     docker build -t trt-layermerge --build-arg EXTRAS=onnxruntime \
#       --build-arg BASE=JETPACK_IMAGE --build-arg TORCH=WHEEL .
#
#   docker run --rm --gpus all -v "$PWD/runs:/data/runs" trt-layermerge doctor
#   On a Jetson: --runtime nvidia in place of --gpus all.

ARG BASE=nvidia/cuda:12.6.3-runtime-ubuntu22.04
FROM ${BASE}

ARG EXTRAS=onnxruntime,tensorrt
ARG TORCH=torch
ARG UID=1000

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# System packages stay visible, because JetPack installs TensorRT for the system Python.
RUN python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:${PATH}

# The largest layer first: it changes least often.
WORKDIR /src
COPY Dockerfile *.whl ./
RUN python -m pip install --no-cache-dir "${TORCH}"

# Dependencies before the code, so that an edit does not install them again.
COPY pyproject.toml setup.py README.md LICENSE ./
RUN mkdir trt_layermerge \
    && echo '__version__ = "0"' > trt_layermerge/__init__.py \
    && python -m pip install --no-cache-dir ".[${EXTRAS}]"

COPY trt_layermerge trt_layermerge
RUN python -m pip install --no-cache-dir --no-deps --force-reinstall .

RUN useradd --create-home --uid "${UID}" layermerge \
    && install --directory --owner=layermerge /data
USER layermerge
WORKDIR /data
COPY --chown=layermerge engines engines
COPY --chown=layermerge examples examples

ENTRYPOINT ["trt-layermerge"]
CMD ["--help"]
