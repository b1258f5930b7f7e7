#!/usr/bin/env bash
# The main job: nine experts, a composition of them under three gates and a rule, and their scores. DATA is the flan_cot folder.
set -euo pipefail
DATA=${1:?the folder with the nine flan_cot tasks} OUT=${2:-runs}
radargate experts smollm2-135m --data "$DATA" --steps 100 --out "$OUT/experts"
for gate in uniform stretch radar; do
  radargate train smollm2-135m "$OUT"/experts/*/ --data "$DATA" --gate $gate --rotation-lr 2e-2 --steps 120 --out "$OUT/$gate"
done
radargate train smollm2-135m "$OUT"/experts/*/ --data "$DATA" --gate radar --preset paper --steps 120 --out "$OUT/paper"
radargate eval smollm2-135m --data "$DATA" --limit 60 --out "$OUT/scores.jsonl"
for expert in "$OUT"/experts/*/; do
  radargate eval smollm2-135m "$expert" --data "$DATA" --limit 60 --task "$(basename "$expert")" --out "$OUT/scores.jsonl"
done
for bundle in uniform stretch radar paper; do radargate eval "$OUT/$bundle" --data "$DATA" --limit 60 --out "$OUT/scores.jsonl"; done
python benchmarks/robustness/lm_eval_parity.py "$OUT/radar" "$DATA" "$OUT/lm_eval.jsonl"
