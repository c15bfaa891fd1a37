#!/bin/sh
# What the images install, with the pip that is named first:
#   install.sh PIP heavy                              PyTorch (arguments TORCH, TORCH_INDEX) and SAM 2
#   install.sh PIP dependencies PACKAGE[EXTRA] ...    what packages of this repository need besides
#   install.sh PIP code PACKAGE[EXTRA] ...            the packages
set -eu
pip="$1 install --quiet" what=$2; shift 2
case $what in
heavy)
    $pip "setuptools>=77,<82" wheel
    # shellcheck disable=SC2086 # several words
    $pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "setuptools>=77,<82" $TORCH
    # SAM 2 without what it draws in: its modules need no more than this.
    $pip "hydra-core>=1.3,<2" "iopath>=0.1.10"
    $pip --no-build-isolation --no-deps "sam2>=1.1,<2" ;;
dependencies)
    python3 docker/requirements.py "$@" >wanted.txt
    $pip -r wanted.txt ;;
code)
    for package; do $pip --no-deps --no-build-isolation "./${package%[*}"; done ;;
esac
