#!/usr/bin/env bash
# A network of timm and photographs that nobody labelled: what stays the same when it is faster?
#
#   examples/journeys/photographs.sh MODEL WEIGHTS DIR [INPUT]
#
#   examples/journeys/photographs.sh timm:tf_efficientnet_lite0 \
#       runs/lite0/weights.safetensors runs/lite0
#
# DIR            train/, val/ and test/ with photographs below them (examples/lite0 makes some)
# INPUT          what the network takes (1x3x224x224)
# KEEP           smallest share of answers that must stay (0.8); WISH the speed-up (1.3)
# MORE           more options of the run, such as "--set finetune.preset=short"
# TRT_LAYERMERGE the command (trt-layermerge); PYTHON runs the bundle's verify.py (python3)
set -euo pipefail

if (($# < 3)); then
  sed -n '2,7p' "$0" >&2
  exit 2
fi
model=$1 weights=$2 folder=$3 input=${4:-1x3x224x224}
read -ra tool <<<"${TRT_LAYERMERGE:-trt-layermerge}"
read -ra more <<<"${MORE:-}"

typed() {
  echo
  echo "\$ trt-layermerge $*"
  "${tool[@]}" "$@"
}

network=(--model "$model" --weights "$weights" --input "$input")
images=(--train "images:$folder/train" --val "images:$folder/val" --test "images:$folder/test")

typed inspect --run photographs "${network[@]}" "${more[@]}"
# Repaired in closed form, not trained: minutes, and a first answer.
typed run --run photographs "${images[@]}" --speedup "${WISH:-1.3}" \
  --set finetune.preset=none --set verify.min_agreement="${KEEP:-0.8}" "${more[@]}"
typed package --run photographs --for plain
"${PYTHON:-python3}" runs/photographs/deploy/plain/verify.py
