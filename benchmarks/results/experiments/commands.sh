# What made the records beside this file; sources/ holds the folders flan_cot and natural_instructions, and the nine experts of the
# main job (../main_job/commands.sh) are in runs/experts. Every grid was stopped and went on with --resume as often as it took.
# These eight ran when the rotation's default rate was 2e-2 (each record names its commit); it is 5e-3 since 2026-11-26.
radargate experiment forms    --preset cpu --data sources/ --out runs/exp/forms    --experts runs/experts --slots 2 --resume
radargate experiment ablation --preset cpu --data sources/ --out runs/exp/ablation --experts runs/experts --slots 2 --resume
radargate experiment fitting  --preset cpu --data sources/ --out runs/exp/fitting  --experts runs/experts --reuse runs/exp/ablation --slots 2 --resume
radargate experiment samples  --preset cpu --data sources/ --out runs/exp/samples  --experts runs/experts --slots 2 --resume
radargate experiment angles   --preset cpu --data sources/ --out runs/exp/angles   --experts runs/experts --reuse runs/exp/ablation --slots 2 --resume
radargate experiment hull     --preset cpu --data sources/ --out runs/exp/hull     --experts runs/experts --slots 2 --resume
# experts of their own: forty, 25 steps each
radargate experiment modules     --preset cpu --data sources/ --out runs/exp/modules     --slots 2 --resume
radargate experiment convergence --preset cpu --data sources/ --out runs/exp/convergence --reuse runs/exp/modules --slots 2 --resume
# tasks that count; learnable/ holds links to their files in flan_cot, glue and natural_instructions. Run at commits that the records
# name, before the default changed: there "radar" without a rate turns at 2e-2 in recipes, and at 5e-3 in learnable (its rates say so).
radargate experts smollm2-135m --data learnable/ --steps 120 --batch-size 4 --dtype float32 --out runs/learned
radargate experiment recipes   --preset cpu --data sources/ --dtype float32 --experts runs/learned --out runs/exp/recipes   --slots 2 --resume
radargate experiment learnable --preset cpu --data sources/ --dtype float32 --experts runs/learned --out runs/exp/learnable --slots 2
radargate experiment routed    --preset cpu --data sources/ --dtype float32 --experts runs/learned --out runs/exp/routed    --slots 2 --reuse runs/exp/learnable
# forty experts: those five, and one of 40 steps for each of the 35 other tasks that are quickest to read (the records name them)
others=$(python -c "import json, pathlib
cells = [json.loads(line) for line in open('benchmarks/results/experiments/crowded/records.jsonl')]
bank = max((cell['conditions']['experts']['mole'] for cell in cells if cell['suite'] == 'cell'), key=len)
print(*(f'--task {name}' for name in bank if not pathlib.Path('runs/learned', name).exists()))")
radargate experts smollm2-135m --data sources/natural_instructions $others --steps 40 --batch-size 4 --dtype float32 --out runs/forty
cp -r runs/learned/* runs/forty/
radargate experiment crowded --preset cpu --data sources/ --dtype float32 --experts runs/forty --out runs/exp/crowded --slots 2 --reuse runs/exp/learnable --reuse runs/exp/routed
# experts of their own, 60 steps each
radargate experiment model-size     --preset cpu --data sources/ --dtype float32 --out runs/exp/model-size     --slots 2
radargate experiment generalization --preset cpu --data sources/ --dtype float32 --out runs/exp/generalization --slots 2
