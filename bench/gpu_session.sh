#!/usr/bin/env bash
# Everything that needs a GPU, in stages of at most nine minutes each:
#
#     bench/gpu_session.sh                        all stages, in order
#     bench/gpu_session.sh environment build      those; a later call goes on with others
#     bench/gpu_session.sh --list                 what there is
#     bench/gpu_session.sh --rehearse [STAGE...]  on a CPU, at the smallest sizes: whether it runs
#
# Needs python3 with torch, triton, pytest, pybind11 and ninja, nvcc, and no network. Results go to
# $OUT (default bench/results) as they are made: session.log, profile.txt and one JSON-lines file
# per benchmark. A stage that fails, or is cut off after nine minutes, does not keep the next from
# running; the exit status is 1 if any did, and the last lines say which.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STAGES=(environment build tests sanitize kernels b0 b4 b7 resnets b1 b2 b3 b5 b6 profile)
SECONDS_PER_STAGE=540

rehearse=0
wanted=()
for word in "$@"; do
    case $word in
        --list) printf '%s\n' "${STAGES[@]}"; exit 0 ;;
        --rehearse) rehearse=1 ;;
        *)
            if [[ " ${STAGES[*]} " != *" $word "* ]]; then
                echo "no stage named $word; there are: ${STAGES[*]}" >&2
                exit 2
            fi
            wanted+=("$word") ;;
    esac
done
[[ ${#wanted[@]} -gt 0 ]] || wanted=("${STAGES[@]}")

OUT=${OUT:-bench/results}
mkdir -p "$OUT"
log="$OUT/session.log"
export OUT PYTHONUNBUFFERED=1 PYTHON=${PYTHON:-python3}

if [[ $rehearse -eq 0 ]] && ! "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "torch sees no GPU on this machine; --rehearse runs the stages on a CPU" >&2
    exit 2
fi
small=()
models=()
if [[ $rehearse -eq 1 ]]; then
    small=(--device cpu --batch-size 1 --repeats 1)
    models=("${small[@]}" --resolution 64 --providers eager-channels-last reference)
fi

environment() {
    uname -a
    nvidia-smi || [[ $rehearse -eq 1 ]]
    nvcc --version | tail -n 2
    "$PYTHON" -c 'import torch, triton, sys; print(sys.version, torch.__version__, triton.__version__)'
    git log -1 --oneline && git status --short
}

build() {
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --editable .
    "$PYTHON" -c "import effnet_fast; print(effnet_fast.backends())"
}

tests() { "$PYTHON" tests/run_tiers.py T4; }

sanitize() { "$PYTHON" -m tests.sanitize; }

kernels() { "$PYTHON" -m bench.kernels efficientnet_b0 --out "$OUT" "${small[@]}"; }

model() { "$PYTHON" -m bench.throughput "$@" --out "$OUT" "${models[@]}"; }

profile() { "$PYTHON" -m bench.time_by_kernel efficientnet_b0 "${small[@]}" | tee "$OUT/profile.txt"; }

failed=()
for stage in "${wanted[@]}"; do
    echo "=== $stage, $(date -u +%H:%M:%S)" | tee -a "$log"
    case $stage in
        b[0-7]) command="model efficientnet_$stage" ;;
        resnets) command="model resnet50 resnet152" ;;
        *) command=$stage ;;
    esac
    start=$SECONDS
    export -f environment build tests sanitize kernels model profile
    # Arrays are not exported: the stage's shell gets their words spelt out.
    timeout --kill-after=10 "$SECONDS_PER_STAGE" bash -c "set -eo pipefail
        rehearse=$rehearse; small=(${small[*]}); models=(${models[*]}); $command" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    [[ $status -eq 124 ]] && echo "cut off after $SECONDS_PER_STAGE s" | tee -a "$log"
    [[ $status -eq 0 ]] || failed+=("$stage")
    echo "=== $stage: status $status after $((SECONDS - start)) s" | tee -a "$log"
done
echo "ran: ${wanted[*]}; failed: ${failed[*]:-none}" | tee -a "$log"
[[ ${#failed[@]} -eq 0 ]]
