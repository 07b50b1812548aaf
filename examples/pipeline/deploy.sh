#!/usr/bin/env bash
# From a recipe to a bundle that may be shipped, or to a clear failure.
#
#   examples/pipeline/deploy.sh RECIPE RUN [TARGET] [OPTIONS OF THE BUNDLE'S verify.py]
#
# Each step is a gate. What fails is named, and its exit code is that of this script:
#   2 usage · 3 unsupported network · 4 device · 5 accuracy · 6 latency · 7 changed or damaged files
#
# MAX_ACCURACY_DROP  largest loss of accuracy on the test images, as a fraction (0.01)
# MAX_LATENCY_MS     most that the network may take, in the median (no limit; it must never be
#                    slower than the original, whatever the limit)
# RUNS_DIR           where runs are kept (runs)
# TRT_LAYERMERGE     the command (trt-layermerge); PYTHON runs the bundle's verify.py (python3)
set -euo pipefail

if (($# < 2)); then
  sed -n '2,5p' "$0" >&2
  exit 2
fi
recipe=$1 run=$2 target=${3:-plain}
shift $(($# < 3 ? $# : 3))

runs_dir=${RUNS_DIR:-runs}
read -ra tool <<<"${TRT_LAYERMERGE:-trt-layermerge}"
this_run=(--run "$run" --runs-dir "$runs_dir")
limits=(--set "verify.never_slower=true")
if [[ -n ${MAX_LATENCY_MS:-} ]]; then
  limits+=(--set "verify.max_latency_ms=$MAX_LATENCY_MS")
fi

step() {
  local name=$1 code=0
  shift
  echo "== $name: $*" >&2
  "$@" || code=$?
  if ((code)); then
    echo "deploy.sh: stopped at $name, exit code $code; nothing was shipped" >&2
    exit "$code"
  fi
}

step recipe "${tool[@]}" run "$recipe" "${this_run[@]}"
step verify "${tool[@]}" verify "${this_run[@]}" --max-accuracy-drop "${MAX_ACCURACY_DROP:-0.01}"
step bench "${tool[@]}" bench "${this_run[@]}" "${limits[@]}"
step package "${tool[@]}" package "${this_run[@]}" --for "$target"
step check "${PYTHON:-python3}" "$runs_dir/$run/deploy/$target/verify.py" "$@"

echo "$runs_dir/$run/deploy/$target"
