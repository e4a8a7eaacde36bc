# resnet-opt on a CPU, with the tested versions; on x86-64 PyTorch brings its CUDA libraries along:
#   docker build -t resnet-opt . && docker run --user "$(id -u)" -v "$PWD:/work" resnet-opt demo
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/venv
COPY constraints/default.txt constraints/
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r constraints/default.txt
COPY pyproject.toml README.md LICENSE ./
COPY optimizer optimizer
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH RESNET_OPT_CACHE=/work/.cache/resnet-opt
RUN useradd --create-home --uid 10001 resnet-opt && install -d -o 10001 /work
USER 10001
WORKDIR /work
ENTRYPOINT ["resnet-opt"]
CMD ["doctor"]
