# Everything on NVIDIA's GPUs, with CUDA from pip; the host has the driver and NVIDIA's container toolkit:
#
#   docker build --file=docker/gpu.Dockerfile --tag=shatter_tf:gpu .
#   docker run --rm --gpus=all shatter_tf:gpu doctor
FROM python:3.12-slim
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /package
COPY . ./
RUN pip install --no-cache-dir --constraint=constraints.txt ".[cuda]"

RUN useradd --create-home --uid=1000 shatter
USER shatter
WORKDIR /work
ENTRYPOINT ["shatter"]
