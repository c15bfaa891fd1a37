# VESSA server. Build from the repository's root:
#   docker build -f docker/server.Dockerfile -t vessa-server .
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH SAM2_BUILD_CUDA=0 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt .
RUN pip install --upgrade pip "setuptools<82" wheel && pip install -c constraints.txt torch torchvision
RUN pip install -c constraints.txt --no-build-isolation "sam2>=1.1,<2"
COPY proto proto
COPY services/vessa_common services/vessa_common
COPY services/vessa_server services/vessa_server
RUN pip install -c constraints.txt --no-build-isolation ./proto ./services/vessa_common \
    ./services/vessa_server

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 vessa && mkdir -p /data && chown vessa /data
COPY --from=build /opt/venv /opt/venv
COPY services/vessa_server/weights /opt/weights
ENV PATH=/opt/venv/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    VESSA_HOST=0.0.0.0 \
    VESSA_WEIGHTS=/opt/weights/nano \
    VESSA_BANK=/data/bank \
    VESSA_CACHE=/data/cache \
    VESSA_LOG_FORMAT=json
USER vessa
VOLUME /data
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["vessa", "health", "--server", "localhost:50051"]
ENTRYPOINT ["vessa-server"]
CMD ["serve"]
