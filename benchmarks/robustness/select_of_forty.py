"""Does ``select`` find the right one of forty adapters? python benchmarks/robustness/select_of_forty.py DATA [--out FILE]

DATA is the folder of sources of ``radargate experiment crowded``, whose tasks, rows and stored scores of each task's own adapter these are. A row
that goes to its own adapter gets that adapter's answer, token for token (tests/gates/test_select.py), so its stored score counts; one that goes
elsewhere counts as wrong, which makes the accuracy a lower bound. No adapter is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch

from radargate.base_models.loading import load_base, load_tokenizer
from radargate.data.prompts import encode_row
from radargate.evaluation.metrics import row_values
from radargate.gates.router.examples import WAYS, hidden_text_sums, text_sums
from radargate.gates.router.router import TextRouter
from radargate.gates.rules.select import SelectRule
from radargate.io.records import append_records, make_record, read_records
from radargate.paper.catalog import CROWDED
from radargate.paper.points import load_material, points

STORED = Path(__file__).parents[1] / "results" / "experiments" / "crowded" / "records.jsonl"


def main() -> None:
    """Route every test row, by each way and from each number of example prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("runs/select_of_forty.jsonl"))
    args = parser.parse_args()
    design = CROWDED.plan("cpu")
    material = load_material(args.data, design)
    point = points(design, material)[-1]
    base, tokenizer = load_base(point.base, "float32"), load_tokenizer(point.base)
    scores = own_scores(point.learned)
    tested = {
        task: [
            encode_row(r.prompt, r.target, tokenizer, False).context
            for r in material.test[task][: design.scoring.limit]
        ]
        for task in point.learned
    }
    for features, sums_of in (("embedding", text_sums), ("hidden", hidden_text_sums)):
        asked = {task: sums_of(prompts, base) for task, prompts in tested.items()}
        for prompts in (1, 20, 200):
            own = {name: material.train[name] for name in point.experts}
            values = SelectRule.from_rows({"prompts": prompts}, SimpleNamespace(config=base.config), tokenizer, own)
            known = {name: sums_of(texts, base) for name, texts in values["examples"].items()}
            for way in WAYS:
                router = TextRouter(len(point.experts), base.get_input_embeddings().weight.shape[1], trained=False)
                router.start([known[name] for name in point.experts], way)
                right = {task: (router(sums).argmax(-1) == point.experts.index(task)) for task, sums in asked.items()}
                found = torch.cat([*right.values()])
                accuracy = sum((r * scores[task]).sum().item() for task, r in right.items()) / len(found)
                metrics = {"right_adapter": found.double().mean().item(), "accuracy_at_least": accuracy}
                facts = {
                    "experts": len(point.experts),
                    "rows": len(found),
                    "features": features,
                    "prompts": prompts,
                    "by": way,
                }
                args.out.parent.mkdir(parents=True, exist_ok=True)
                append_records(
                    args.out, [make_record("select_of_forty", f"{features} {way} {prompts}", metrics, **facts)]
                )
                print(
                    f"{features}, {way}, {prompts} prompts an adapter: right {metrics['right_adapter']:.3f}, accuracy at least {accuracy:.3f}"
                )


def own_scores(tasks: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Whether each test row's own adapter was right, as stored."""
    stored = [r for r in read_records(STORED) if r["suite"] == "eval" and r.get("task") in tasks]
    return {r["task"]: torch.tensor(row_values(r, "acc")) for r in stored if r["system"] == f"expert: {r['task']}"}


if __name__ == "__main__":
    main()
