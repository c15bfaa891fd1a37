# The model on a tritonserver. From the repository's root:
#   docker build -f docker/triton.Dockerfile -t vessa-triton .
# TRITON is any tritonserver from 23.10 on with the Python backend, whose python3 is 3.11 or later.
ARG TRITON=nvcr.io/nvidia/tritonserver:25.08-py3
FROM $TRITON
ARG TORCH_INDEX=
ARG TORCH="-c constraints.txt torch torchvision"
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1 SAM2_BUILD_CUDA=0
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m pip install --quiet "setuptools<82" wheel \
    && python3 -m pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $TORCH
RUN python3 -m pip install --quiet "hydra-core>=1.3,<2" "iopath>=0.1.10" \
    && python3 -m pip install --quiet --no-build-isolation --no-deps "sam2>=1.1,<2"
COPY docker/requirements.py docker/
COPY proto proto
COPY services/vessa_common services/vessa_common
COPY services/vessa_server services/vessa_server
RUN python3 docker/requirements.py proto services/vessa_common services/vessa_server >wanted.txt \
    && python3 -m pip install --quiet -r wanted.txt \
    && python3 -m pip install --quiet --no-deps --no-build-isolation \
        ./proto ./services/vessa_common ./services/vessa_server
COPY docker/triton/models /models
COPY services/vessa_server/weights /opt/weights
RUN useradd --create-home --uid 1001 vessa
ENV VESSA_WEIGHTS=/opt/weights/nano HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER vessa
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python3", "-c", \
    "import urllib.request as u; u.urlopen('http://localhost:8000/v2/models/vessa/ready', timeout=4)"]
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", \
    "--load-model=vessa", "--disable-auto-complete-config"]
