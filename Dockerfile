# Adapter Studio. CPU: docker build -t adapter-studio . · NVIDIA: docker build --build-arg DEVICE=cuda -t adapter-studio .
# Run: docker run --init -p 7860:7860 -v studio:/home/user/data adapter-studio   (add --gpus all for NVIDIA); compose.yaml does both
# A driver that is too old for this PyTorch: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126, or another one there
FROM python:3.11-slim-bookworm

ARG DEVICE=cpu
ARG TORCH_INDEX=
# an init reaps what a killed trainer leaves behind: a zombie would count as alive; on a GPU Triton compiles its kernels with gcc
RUN apt-get update && apt-get install -y --no-install-recommends make tini gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
RUN useradd -m -u 1000 user
USER user
RUN mkdir -p /home/user/app /home/user/data
WORKDIR /home/user/app

# dependencies first, so that a change of code does not install PyTorch again
COPY --chown=user pyproject.toml setup.py constraints.txt Makefile README.md LICENSE ./
COPY --chown=user studio/__init__.py studio/__init__.py
COPY --chown=user jobs/__init__.py jobs/__init__.py
RUN case "$DEVICE" in cpu) build=cpu;; *) build=cu130;; esac; mkdir -p static; \
    make install EXTRAS= TORCH_INDEX="${TORCH_INDEX:-https://download.pytorch.org/whl/$build}"

COPY --chown=user studio studio
COPY --chown=user jobs jobs
COPY --chown=user static static

# HF_HOME in the volume too: models of the hub are fetched into that cache
ENV STUDIO_HOME=/home/user/data HF_HOME=/home/user/data/huggingface STUDIO_HOST=0.0.0.0 STUDIO_PORT=7860
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=60s CMD .venv/bin/python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=5)"
ENTRYPOINT ["tini", "--"]
CMD [".venv/bin/studio", "up"]
