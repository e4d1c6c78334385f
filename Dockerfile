# Build:  docker build -t mm-lightning .                                   CUDA, with the torch of constraints.txt
#         docker build -t mm-lightning --build-arg TORCH_INDEX=URL .       another build of that torch, such as CPU only:
#                                                                          URL is in PyTorch's "Get started"
# Run:    docker run --rm -v "$PWD/runs:/work/runs" mm-lightning fit --config quickstart
FROM python:3.12-slim
ARG TORCH_INDEX=""
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/mm-lightning
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY mm_lightning mm_lightning
COPY callbacks callbacks
COPY configs configs
RUN if [ -n "$TORCH_INDEX" ]; then \
        grep -E '^(torch|torchvision)==' constraints.txt > torch.txt \
        && pip install --no-cache-dir --index-url "$TORCH_INDEX" -r torch.txt; \
    fi \
    && pip install --no-cache-dir -c constraints.txt ".[data,eval,export,fast,report]"
RUN useradd --create-home --uid 1000 user && mkdir /work && chown user /work
USER 1000
WORKDIR /work
ENTRYPOINT ["mm"]
CMD ["--help"]
