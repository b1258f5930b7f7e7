"""What `kills` kills: the command of each scenario, what it has finished so far, and what its result is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hostile_corpus import BASE, CONFIG, GOOD, RANK, SITES, WEIGHTS, floats, packed

SMALL = ["--batch-size", "2", "--max-length", "64", "--device", "cpu"]


@dataclass(frozen=True)
class World:
    """A tiny model, two adapters for it, and data.

    Attributes:
        folder: where everything lies.
        only: names of the scenarios wanted, or None for all.
    """

    folder: Path
    only: list[str] | None = None

    @classmethod
    def made(cls, folder: Path, only: list[str] | None = None) -> World:
        """Everything that the runs need, and everything imported that their processes would import."""
        import accelerate  # noqa: F401
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        import radargate.cli.compare
        import radargate.cli.experiment
        import radargate.comparison.page
        import radargate.comparison.run
        import radargate.paper.page
        import radargate.paper.run_experiment
        import radargate.training.experts
        import radargate.training.gates  # noqa: F401
        from radargate.io.records import provenance

        torch.set_num_threads(1)  # a process with threads of its own cannot be forked safely
        provenance()
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(**{k: v for k, v in BASE.items() if k not in ("model_type", "architectures")})
        ).save_pretrained(folder / "base")
        alphabet = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, **alphabet}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(
            folder / "base"
        )
        for seed, name in enumerate(("add", "even")):
            _write_adapter(folder / "adapters" / name, seed)
        for source in ("flan_cot", "natural_instructions"):
            _write_data(folder / "sources" / source, ("aqua", "creak", "esnli"))
        _write_data(folder / "data", ("add", "even"))
        return cls(folder, only)

    @property
    def base(self) -> str:
        """The base's folder."""
        return str(self.folder / "base")

    @property
    def adapters(self) -> list[str]:
        """The adapters' folders."""
        return [str(self.folder / "adapters" / name) for name in ("add", "even")]


def _write_adapter(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(GOOD))
    tensors = {}
    for site, (d_in, d_out) in SITES.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = ("F32", [RANK, d_in], floats(RANK * d_in, 10 * seed + 1))
        tensors[f"base_model.model.{site}.lora_B.weight"] = ("F32", [d_out, RANK], floats(RANK * d_out, 10 * seed + 2))
    (folder / WEIGHTS).write_bytes(packed(tensors))


def _write_data(folder: Path, tasks: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for place, task in enumerate(tasks):
        for split, count in (("train", 12), ("test", 3)):
            rows = [
                {
                    "prompt": f"{task} {i}?",
                    "target": ("yes", "no")[(i + place) % 2],
                    "choices": ["yes", "no"],
                    "answer_index": (i + place) % 2,
                }
                for i in range(count)
            ]
            (folder / f"{task}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Scenario:
    """One command that can be killed.

    Attributes:
        name: of the command.
        weight: how often it is chosen, beside the others.
        command: from an output folder to its words, without ``--resume``.
        finished: what is whole in an output folder; raises where something half-written passes for whole.
        result: everything of a finished run that must not depend on kills.
    """

    name: str
    weight: int
    command: Callable[[Path], list[str]]
    finished: Callable[[Path], dict[str, Any]]
    result: Callable[[Path], dict[str, Any]]

    def lost(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """What was finished before and is gone or another now; of checkpoints the newest counts."""
        found = [key for key, value in before.items() if key != "checkpoint" and now.get(key) != value]
        return found + (["checkpoint"] if now.get("checkpoint", 0) < before.get("checkpoint", 0) else [])


def scenarios(world: World) -> list[Scenario]:
    """All that `World.only` asks for."""
    data = ["--data", str(world.folder / "data")]
    train = ["train", world.base, *world.adapters, *data, "--steps", "18", "--save-every", "3", *SMALL]
    experts = ["experts", world.base, *data, "--steps", "6", "--rank", "2", "--target-modules", "q_proj", *SMALL]
    compare = [
        "compare",
        world.base,
        *world.adapters,
        *data,
        "--gates",
        "stretch",
        "--rules",
        "uniform",
        "--union-steps",
        "2",
        "--steps",
        "2",
        "--limit",
        "2",
        "--max-new-tokens",
        "2",
        *SMALL,
    ]
    experiment = [
        "experiment",
        "modules",
        "--smoke",
        "--base",
        world.base,
        "--data",
        str(world.folder / "sources"),
        "--gates",
        "stretch",
        "--steps",
        "2",
        "--limit",
        "2",
        "--device",
        "cpu",
    ]
    known = [
        Scenario("train", 5, lambda out: [*train, "--out", str(out)], _trained, _bundle),
        Scenario("experts", 3, lambda out: [*experts, "--out", str(out)], _experts, _experts),
        Scenario("compare", 2, lambda out: [*compare, "--out", str(out)], _cells, _scores),
        Scenario("experiment", 2, lambda out: [*experiment, "--out", str(out)], _cells, _scores),
    ]
    return [s for s in known if world.only is None or s.name in world.only]


def _trained(out: Path) -> dict[str, Any]:
    from radargate.composition.bundle import check_files, read_lock
    from radargate.io.records import read_records
    from radargate.training import checkpoints

    newest = checkpoints.newest(out / "checkpoints")
    found: dict[str, Any] = {"checkpoint": int(newest.name.split("-")[1]) if newest else 0}
    if (out / "records.jsonl").exists():
        read_records(out / "records.jsonl")
    if (out / CONFIG).exists():
        check_files(out)
        assert read_lock(out), "a bundle without its lock file"
        found = {"bundle": _hash(out / WEIGHTS), "checkpoint": 18}
    return found


def _bundle(out: Path) -> dict[str, Any]:
    from radargate.io.records import read_records

    assert _trained(out).get("bundle"), "no bundle"
    curve = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": _hash(out / WEIGHTS),
        "curve": [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in curve],
        "records": [r["metrics"]["final_loss"] for r in read_records(out / "records.jsonl") if r["suite"] == "train"],
        "left": sorted(f.name for f in out.iterdir() if f.name.startswith(".")),
    }


def _experts(out: Path) -> dict[str, Any]:
    from radargate.experts.adapters import read_adapter

    found = {}
    for task in ("add", "even"):
        if (out / task / CONFIG).exists():
            read_adapter(task, out / task)
            losses = [json.loads(line)["loss"] for line in (out / task / "metrics.jsonl").read_text().splitlines()]
            found[task] = (_hash(out / task / WEIGHTS), losses)
    return found


def _cells(out: Path) -> dict[str, Any]:
    from radargate.experts.adapters import read_adapter
    from radargate.io.records import read_records

    found: dict[str, Any] = {}
    if (out / "records.jsonl").exists():
        for record in read_records(out / "records.jsonl"):
            if record["suite"] == "cell":
                assert record["case"] not in found, "a finished cell was run again"
                found[record["case"]] = record["date"]
    for config in sorted((out / "experts").glob(f"*/*/{CONFIG}")):
        read_adapter("expert", config.parent)
        found[str(config.parent.relative_to(out))] = _hash(config.parent / WEIGHTS)
    return found


def _scores(out: Path) -> dict[str, Any]:
    from radargate.io.records import read_records

    cells = set(_cells(out))
    scores = {}
    for record in read_records(out / "records.jsonl"):
        if record["suite"] == "eval" and "rows" in record:
            assert record["cell"]["id"] in cells, "scores of a cell that was not finished"
            scores[f"{record['cell']['id']} {record['task']}"] = record["rows"]
        if record["suite"] == "cell":
            scores[f"curve of {record['case']}"] = record["metrics"]["curve"]
    return scores


def _hash(file: Path) -> str:
    from radargate.io.records import file_hash

    return file_hash(file)
