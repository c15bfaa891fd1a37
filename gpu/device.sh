#!/usr/bin/env bash
# The one command on the machine with a GPU, in the project's folder:
#
#     bash gpu/device.sh JOB [SECONDS [KEY=VALUE ...]]
#
# SECONDS is how long the job may take from now, by default what it was prepared for; settings win
# over the prepared ones. What it brings goes to $OUT (gpu/.work/JOB/out if that is unset), the log
# too, whatever happens.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
job=${1:?usage: bash gpu/device.sh JOB [SECONDS]}
VESSA_STARTED=$(date +%s)
export VESSA_STARTED VESSA_SECONDS=${2:-} VESSA_SET="${*:3}"
export OUT=${OUT:-$PWD/gpu/.work/$job/out}
# Nothing is fetched there, and nobody reads colours.
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 NO_COLOR=1 TERM=dumb COLUMNS=${COLUMNS:-100}
# Clients and servers of a job meet on this machine, whatever proxy it has.
export no_proxy=${no_proxy:+$no_proxy,}127.0.0.1,localhost
mkdir -p "$OUT" || exit 2
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
python=${VESSA_PYTHON:-python3}
code=$PWD/proto/src:$PWD/services/vessa_common/src:$PWD/services/vessa_server/src
code+=:$PWD/services/ssl_trainer/src:$PWD/gpu:$PWD/benchmarks:$PWD/tests
code+=${PYTHONPATH:+:$PYTHONPATH}

run() {
    command -v "$python" >/dev/null || { echo "Error: no $python here; set VESSA_PYTHON"; return 2; }
    PYTHONPATH=$code "$python" -m gpu_jobs.install "$job" "$scratch/site" || return
    PYTHONPATH=$scratch/site:$code "$python" -m gpu_jobs "$job" "$scratch/run"
}

run 2>&1 | tee "$OUT/console.log"
exit "${PIPESTATUS[0]}"
