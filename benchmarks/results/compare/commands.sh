# What made records.jsonl and report.html. Nine experts of the main job (../main_job/commands.sh) are in runs/experts.
radargate experts smollm2-135m --data data/flan_cot --architecture hydra --steps 50 --out runs/hydra

# The whole comparison. To use both cores it was run as three processes of one thread over parts of the grid (mole and omoe from
# the first gate on, the same from the last gate back, hydra), which were stopped and went on with --resume. Their
# records, each under its own id, were then put together; this command finds every cell there (commit e6cb01b runs the cells).
radargate compare smollm2-135m runs/experts/{aqua,creak,ecqa,esnli,gsm8k,qasc,qed,sensemaking,strategyqa} --data data/flan_cot \
  --gates all --rules all --architectures mole,hydra,omoe --experts hydra=runs/hydra --seeds 3 \
  --rotation-lr 2e-2 --steps 20 --batch-size 4 --limit 6 --max-new-tokens 12 --max-length 256 --out runs/compare --resume
