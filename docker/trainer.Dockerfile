# Semi-supervised trainer. Build from the repository's root:
#   docker build -f docker/trainer.Dockerfile -t vessa-trainer .
FROM python:3.11-slim AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt .
RUN pip install --upgrade pip "setuptools<82" wheel && pip install -c constraints.txt torch
COPY proto proto
COPY services/vessa_common services/vessa_common
COPY services/ssl_trainer services/ssl_trainer
RUN pip install -c constraints.txt --no-build-isolation ./proto ./services/vessa_common \
    "./services/ssl_trainer[h5]"

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 vessa && mkdir -p /runs && chown vessa /runs
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER vessa
VOLUME /runs
ENTRYPOINT ["ssl-trainer"]
CMD ["--help"]
