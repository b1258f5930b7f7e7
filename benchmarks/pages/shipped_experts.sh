#!/usr/bin/env bash
# Trains the experts that the package ships: one for each category of the built-in tasks (about half an hour on 2 cores).
set -euo pipefail
OUT=${1:-runs/shipped}
for category in language mathematics reasoning translation science; do
  radargate experts smollm2-135m --data builtin:$category --union $category --steps 120 --batch-size 8 --lr 2e-3 \
    --save-dtype bfloat16 --resume --out "$OUT"
done
