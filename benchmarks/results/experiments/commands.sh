# What made the records beside this file; sources/ holds the folders flan_cot and natural_instructions, and the nine experts of the
# main job (../main_job/commands.sh) are in runs/experts. Every grid was stopped and went on with --resume as often as it took.
radargate experiment forms    --preset cpu --data sources/ --out runs/exp/forms    --experts runs/experts --slots 2 --resume
radargate experiment ablation --preset cpu --data sources/ --out runs/exp/ablation --experts runs/experts --slots 2 --resume
radargate experiment fitting  --preset cpu --data sources/ --out runs/exp/fitting  --experts runs/experts --reuse runs/exp/ablation --slots 2 --resume
radargate experiment samples  --preset cpu --data sources/ --out runs/exp/samples  --experts runs/experts --slots 2 --resume
radargate experiment angles   --preset cpu --data sources/ --out runs/exp/angles   --experts runs/experts --reuse runs/exp/ablation --slots 2 --resume
radargate experiment hull     --preset cpu --data sources/ --out runs/exp/hull     --experts runs/experts --slots 2 --resume
# experts of their own: forty, 25 steps each
radargate experiment modules     --preset cpu --data sources/ --out runs/exp/modules     --slots 2 --resume
radargate experiment convergence --preset cpu --data sources/ --out runs/exp/convergence --reuse runs/exp/modules --slots 2 --resume
