#!/usr/bin/env bash
# A network of one's own, its checkpoint and a labelled folder: from a first look to a bundle.
#
#   examples/journeys/labelled.sh [DIR]
#
# DIR            net.py, checkpoint.pth, train/, val/ and test/; letters.py makes them where they are
#                missing (letters)
# MORE           more options of the runs, such as "--set finetune.options.epochs=30"
# TRT_LAYERMERGE the command (trt-layermerge); PYTHON runs letters.py and verify.py (python3)
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
folder=${1:-letters}
python=${PYTHON:-python3}
read -ra tool <<<"${TRT_LAYERMERGE:-trt-layermerge}"
read -ra more <<<"${MORE:-}"

typed() {
  echo
  echo "\$ trt-layermerge $*"
  "${tool[@]}" "$@"
}

[[ -d $folder/train ]] || "$python" "$here/letters.py" "$folder" ${IMAGES:+--images "$IMAGES"}
cd "$folder"
cat >mine.yaml <<'END'
model: {name: "net.py:resnet20", weights: checkpoint.pth, input: [1, 3, 32, 32]}
data:
  train: "imagefolder:train"
  val: "imagefolder:val"
  test: "imagefolder:test"
  preprocess: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]} # as the network was trained
search: {speedup: 1.5}
END

# What is in it, and how long will it take? Then a first look, without training.
typed inspect --run mine --recipe mine.yaml "${more[@]}"
typed run --run mine --set finetune.preset=none "${more[@]}"
# In earnest, from the same tables; and what would other speeds cost?
typed run --run mine --set finetune.preset=short "${more[@]}"
typed run --run mine --speedup 1.25,2 "${more[@]}"
# Ship one of them.
typed package --run mine --for plain
"$python" runs/mine/deploy/plain/verify.py
