#!/usr/bin/env bash
# The real run with three seeds: twelve experts, and compositions of them under stretch and radar with seeds 0, 1, 2.
# DATA holds the folders flan_cot, glue and natural_instructions. Interrupted? Run it again: finished parts are kept.
set -euo pipefail
DATA=$(realpath "${1:?the folder that holds flan_cot, glue and natural_instructions}") OUT=${2:-runs/three_seeds}
mkdir -p "$OUT/data" "$OUT/scored"
ln -sf "$DATA"/flan_cot/*.jsonl.gz "$DATA"/glue/{qqp,sst2}.*.jsonl.gz \
  "$DATA"/natural_instructions/task512_twitter_emotion_classification.*.jsonl.gz "$OUT/data/"
radargate experts smollm2-135m --data "$OUT/data" --steps 100 --out "$OUT/experts" --resume
radargate train smollm2-135m "$OUT"/experts/*/ --data "$OUT/data" --gate uniform --out "$OUT/uniform" --resume
for seed in 0 1 2; do
  for gate in stretch radar; do
    radargate train smollm2-135m "$OUT"/experts/*/ --data "$OUT/data" --gate $gate --rotation-lr 2e-2 --steps 120 --seed $seed --out "$OUT/$gate-$seed" --resume
  done
done
score() { # NAME, then the arguments of radargate eval: scored once, kept in a file of its own
  local name=$1 && shift
  [ -f "$OUT/scored/$name.done" ] && return
  rm -f "$OUT/scored/$name.jsonl"
  radargate eval "$@" --data "$OUT/data" --limit 40 --out "$OUT/scored/$name.jsonl"
  touch "$OUT/scored/$name.done"
}
score base smollm2-135m
for expert in "$OUT"/experts/*/; do score "expert-$(basename "$expert")" smollm2-135m "$expert" --task "$(basename "$expert")"; done
for bundle in uniform {stretch,radar}-{0,1,2}; do score "$bundle" "$OUT/$bundle"; done
RECORDS=benchmarks/results/three_seeds
cp "$OUT/experts/records.jsonl" "$RECORDS/experts.jsonl"
cat "$OUT"/{uniform,stretch-0,stretch-1,stretch-2,radar-0,radar-1,radar-2}/records.jsonl > "$RECORDS/train.jsonl"
cat "$OUT"/scored/*.jsonl > "$RECORDS/scores.jsonl"
make pages
