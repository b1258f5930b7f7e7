#!/usr/bin/env bash
set -euo pipefail
radargate experiment skills-tuning --experts benchmarks/skills --dtype bfloat16 --out runs/skills_tuning
radargate experiment skills --experts benchmarks/skills --pairs sum-number_word --rows 50 --expert-seeds 3 --seeds 3 --dtype bfloat16 --out runs/skills --resume
