# The book with everything for GPUs: docker build -t weight-space-book . && docker run --gpus all -v $PWD/results:/study/results weight-space-book make study PROFILE=qwen3-4b
# Written by the images' documentation, not built here: the machines this book is tested on have neither Docker nor a GPU.
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04
RUN apt-get update && apt-get install --yes --no-install-recommends git make python3 python3-dev python3-venv build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /study
COPY requirements.txt requirements-gpu.txt constraints.txt pyproject.toml LICENSE Makefile ./
COPY src src
RUN make venv/ready && venv/bin/pip install --no-cache-dir --no-build-isolation --requirement requirements-gpu.txt
COPY . .
ENV HF_HOME=/study/results/hub
CMD ["make", "help"]
