#!/usr/bin/env bash
# Everything that needs a GPU, in stages of at most nine minutes each:
#
#     bench/gpu_session.sh                        all stages, in order
#     bench/gpu_session.sh environment build      those; a later call goes on with others
#     bench/gpu_session.sh --list                 what there is
#     bench/gpu_session.sh --rehearse [STAGE...]  on a CPU, at the smallest sizes: whether it runs
#
# Needs nvcc, ninja and python3 with torch, triton, torchvision, pybind11, setuptools, pytest and
# pytest-xdist, and no network. Results go to $OUT (default bench/results) as they are made:
# session.log, profile.txt and one JSON-lines file per benchmark. A stage that fails, or is cut off
# after nine minutes, does not keep the next from running; the exit status is 1 if any did, and the
# last line says which. KERNELS_OPTIONS and THROUGHPUT_OPTIONS are more options of bench.kernels and
# bench.throughput, such as "--providers eager-channels-last auto+graph".
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/.."

STAGES=(environment build boxes tests sanitize kernels b0 b4 b7 resnets b1 b2 b3 b5 b6 profile)
SECONDS_PER_STAGE=${SECONDS_PER_STAGE:-540}
export OUT=${OUT:-bench/results} PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
export REHEARSE=${REHEARSE:-}

has_gpu() { "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

throughput() {
    "$PYTHON" -m bench.throughput "$@" --out "$OUT" ${REHEARSE:+--device cpu --batch-size 1 \
        --repeats 1 --resolution 64 --providers eager-channels-last auto} ${THROUGHPUT_OPTIONS:-}
}

run_stage() {
    local small=${REHEARSE:+--device cpu --batch-size 1 --repeats 1}
    case $1 in
        environment)
            uname -a
            nvidia-smi || [[ -n $REHEARSE ]]
            nvcc --version | tail -n 2
            "$PYTHON" -c 'import sys, torch, triton
print(sys.version, torch.__version__, triton.__version__)'
            git log -1 --oneline
            git status --short ;;
        build)
            "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --editable .
            "$PYTHON" -c 'import effnet_fast; print(effnet_fast.backends())' ;;
        # On their own: a wait for a box that never comes would not end.
        boxes) EFFNET_FAST_TEST_BACKENDS=cuda EFFNET_FAST_TEST_DEVICE=cuda timeout 90 "$PYTHON" \
            -m pytest -q tests/t4/test_box_copies.py tests/ops/test_strides.py ;;
        tests) "$PYTHON" tests/run_tiers.py T4 ;;
        sanitize) "$PYTHON" -m tests.sanitize ;;
        kernels) "$PYTHON" -m bench.kernels efficientnet_b0 --out "$OUT" $small \
            ${KERNELS_OPTIONS:-} ;;
        resnets) throughput resnet50 resnet152 ;;
        profile)
            "$PYTHON" -m bench.time_by_kernel efficientnet_b0 $small | tee "$OUT/profile.txt" ;;
        *) throughput "efficientnet_$1" ;;
    esac
}

# How the loop below runs a stage under a time limit: as a process of its own.
if [[ ${1:-} == --run-stage ]]; then
    run_stage "$2"
    exit
fi

wanted=()
for word in "$@"; do
    if [[ $word == --list ]]; then
        printf '%s\n' "${STAGES[@]}"
        exit 0
    elif [[ $word == --rehearse ]]; then
        REHEARSE=1
    elif [[ " ${STAGES[*]} " == *" $word "* ]]; then
        wanted+=("$word")
    else
        echo "no stage named $word; there are: ${STAGES[*]}" >&2
        exit 2
    fi
done
[[ ${#wanted[@]} -gt 0 ]] || wanted=("${STAGES[@]}")
if [[ -z $REHEARSE ]] && ! has_gpu; then
    echo "torch sees no GPU on this machine; --rehearse runs the stages on a CPU" >&2
    exit 2
fi

mkdir -p "$OUT"
failed=()
run_all() {
    local stage start status
    for stage in "${wanted[@]}"; do
        start=$SECONDS status=0
        echo "=== $stage, $(date -u +%H:%M:%S)"
        timeout --signal=INT --kill-after=20 "$SECONDS_PER_STAGE" "$self" --run-stage "$stage" || status=$?
        echo "=== $stage: status $status after $((SECONDS - start)) s (124: cut off)"
        [[ $status -eq 0 ]] || failed+=("$stage")
    done
    echo "ran: ${wanted[*]}; failed: ${failed[*]:-none}"
    [[ ${#failed[@]} -eq 0 ]]
}
run_all 2>&1 | tee -a "$OUT/session.log"
