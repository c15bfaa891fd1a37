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
COPY docker/install.sh docker/requirements.py docker/
RUN docker/install.sh "python3 -m pip" heavy
COPY proto/pyproject.toml proto/
COPY services/vessa_common/pyproject.toml services/vessa_common/
COPY services/vessa_server/pyproject.toml services/vessa_server/
ARG PACKAGES="proto services/vessa_common services/vessa_server"
RUN docker/install.sh "python3 -m pip" dependencies $PACKAGES
COPY proto proto
COPY services services
RUN docker/install.sh "python3 -m pip" code $PACKAGES
COPY docker/triton/models /models
COPY services/vessa_server/weights /opt/weights
RUN chmod -R a+rX /models /opt/weights && useradd --create-home --uid 1001 vessa
ENV VESSA_WEIGHTS=/opt/weights/nano HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER vessa
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python3", "-c", \
    "import urllib.request as u; u.urlopen('http://localhost:8000/v2/models/vessa/ready', timeout=4)"]
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", \
    "--load-model=vessa", "--disable-auto-complete-config"]
