#!/bin/sh
# What the images install, with the pip that is named first:
#   install.sh PIP heavy                  PyTorch (arguments TORCH, TORCH_INDEX) and SAM 2
#   install.sh PIP PACKAGE[EXTRA] ...     packages of this repository, and what they depend on besides
set -eu
pip="$1 install --quiet"; shift
if [ "$1" = heavy ]; then
    $pip "setuptools<82" wheel
    # shellcheck disable=SC2086 # several words
    $pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $TORCH
    # SAM 2 without what it draws in: its modules need no more than this.
    $pip "hydra-core>=1.3,<2" "iopath>=0.1.10"
    $pip --no-build-isolation --no-deps "sam2>=1.1,<2"
else
    python3 docker/requirements.py "$@" >wanted.txt
    $pip -r wanted.txt
    for package; do $pip --no-deps --no-build-isolation "./${package%[*}"; done
fi
