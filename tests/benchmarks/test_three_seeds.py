"""The section on three seeds: made from records like those of a real run, each number checked by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import results_table
from three_seeds import BASE, EXPERT, Scores, section

ROWS = 40
TASKS = ("law", "math", "poetry")
# mean NLL of each system on each task; poetry's own expert is no better than the base
LEVELS = {
    BASE: (3.0, 2.0, 1.5),
    "uniform": (2.0, 1.6, 1.5),
    "stretch": (1.0, 1.2, 1.4),
    "radar": (0.8, 1.0, 1.4),
    EXPERT: (0.7, 0.9, 1.5),
}


def scored(target: str, task: str, nll: np.ndarray, correct: np.ndarray) -> dict:
    return {
        "schema": 1,
        "suite": "eval",
        "case": f"{target}/{task}",
        "system": target,
        "task": task,
        "limit": ROWS,
        "metrics": {"n": ROWS},
        "machine": {"cpu": "a CPU", "cores": 2},
        "rows": {
            "id": [f"{task}/{i}" for i in range(ROWS)],
            "correct": correct.astype(int).tolist(),
            "nll_sum": (3 * nll).tolist(),
            "tokens": [3] * ROWS,
        },
    }


def make_scores(seeds: int = 3, radar_is: str = "radar") -> list[dict]:
    """Eval records of every system; seeds differ a little, and rows more."""
    generator, records = np.random.default_rng(7), []
    for index, task in enumerate(TASKS):
        hard = generator.normal(0, 0.3, ROWS)  # how hard a row is for everybody
        for system, levels in LEVELS.items():
            for seed in range(seeds) if system in ("stretch", "radar") else (0,):
                level = LEVELS[radar_is][index] if system == "radar" else levels[index]
                nll = level + hard + generator.normal(0, 0.02, ROWS) + 0.01 * seed
                name = {EXPERT: task}.get(system, f"{system}-{seed}" if system in ("stretch", "radar") else system)
                records.append(scored(name, task, nll, generator.random(ROWS) < 1.2 - 0.4 * level))
    return [*records, {"schema": 1, "suite": "eval", "system": BASE, "task": "mean", "metrics": {}}]


def make_folder(folder, scores: list[dict]):
    options = {"steps": 120, "batch_size": 8, "top_k": 2}
    metrics = {"trained_parameters": 10, "final_loss": 1.0, "seconds": 60.0, "mean_angle": None}
    training = [
        {
            "schema": 1,
            "suite": "train",
            "case": "uniform",
            "commit": "1",
            "metrics": {**metrics, "trained_parameters": 0},
            "options": {**options, "seed": 0},
        }
    ]
    training += [
        {
            "schema": 1,
            "suite": "train",
            "case": gate,
            "commit": str(seed),
            "metrics": {**metrics, "mean_angle": 0.3 if gate == "radar" else None},
            "options": {**options, "seed": seed},
        }
        for seed in (2, 0, 1)
        for gate in ("radar", "stretch")
    ]
    experts = [
        {
            "schema": 1,
            "suite": "experts",
            "case": task,
            "options": {"rank": 8, "alpha": 32, "steps": 100, "batch_size": 8, "lr": 1e-3},
        }
        for task in TASKS
    ]
    folder.mkdir(exist_ok=True)
    for name, records in (("scores", scores), ("train", training), ("experts", experts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table as its rows of cells, without the ruled line."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.M)
    return [
        [[c.strip() for c in line.strip("|").split("|")] for line in b.strip().splitlines() if "---" not in line]
        for b in blocks
    ]


def by_hand(records: list[dict], system: str, task: str) -> np.ndarray:
    """Rows of one system and task, [seeds, rows]."""
    return np.array(
        [
            [s / t for s, t in zip(r["rows"]["nll_sum"], r["rows"]["tokens"], strict=True)]
            for r in records
            if r["task"] == task and re.fullmatch(rf"{system}(-\d)?", r["system"])
        ]
    )


def test_every_number_follows_from_the_records(tmp_path):
    records = make_scores()
    text = "\n\n".join(section(make_folder(tmp_path / "run", records)))
    facts, means, pairs, *_ = tables(text)
    shown = {row[0]: row for row in means}
    assert list(shown) == ["system", "base", "uniform mixture", "stretch", "radar", "oracle"]
    radar = np.mean([by_hand(records, "radar", t).mean(1) for t in TASKS], axis=0)  # one mean a seed
    assert shown["radar"][3].startswith(f"{radar.mean():.3f} [")
    assert shown["radar"][4] == f"{radar.min():.3f} to {radar.max():.3f}"
    assert shown["base"][4] == "" and shown["base"][3].startswith(
        f"{np.mean([by_hand(records, BASE, t).mean() for t in TASKS]):.3f} ["
    )
    value, low, high = map(float, re.findall(r"[\d.]+", shown["radar"][3]))
    error = 1.96 * np.sqrt(sum(by_hand(records, "radar", t).mean(0).var() / ROWS for t in TASKS)) / len(TASKS)
    assert high - value == pytest.approx(error, rel=0.2) and value - low == pytest.approx(error, rel=0.2)
    stretch = np.mean([by_hand(records, "stretch", t).mean(1) for t in TASKS], axis=0)
    difference = next(row for row in pairs if row[0] == "radar − stretch")
    assert difference[5].startswith(f"{(radar - stretch).mean():+.4f} [") and float(difference[6]) < 0.01
    assert difference[7] == ", ".join(f"{d:+.3f}" for d in radar - stretch)
    assert difference[6] == "0.0005" and difference[8] == "radar"
    assert dict(facts)["versions of the code that trained"] == "3"
    training = tables(text)[-1]
    assert [row[:2] for row in training[1:]] == [[g, str(s)] for g in ("stretch", "radar") for s in range(3)]


def test_a_task_counts_only_where_its_own_expert_beats_the_base(tmp_path):
    records = make_scores()
    scores = Scores(records)
    assert [scores.counts(task, "nll") for task in TASKS] == [True, True, False]
    text = "\n\n".join(section(make_folder(tmp_path / "run", records)))
    assert "| gold-answer NLL | 2 of 3 | law, math |" in text
    counted = tables(text[text.index("Over those by gold-answer NLL") :])[0]
    expected = np.mean([by_hand(records, "radar", t).mean() for t in TASKS[:2]])
    assert next(row for row in counted if row[0] == "radar")[3].startswith(f"{expected:.3f} [")


def test_where_nothing_differs_nothing_is_claimed(tmp_path):
    text = "\n\n".join(section(make_folder(tmp_path / "run", make_scores(radar_is="stretch"))))
    difference = next(row for row in tables(text)[2] if row[0] == "radar − stretch")
    assert difference[8] == "not significant" and difference[4] in ("not significant", "radar", "stretch")


def test_systems_scored_on_other_rows_are_not_compared(tmp_path):
    records = make_scores()
    records[-2]["rows"]["id"][0] = "poetry/other"
    with pytest.raises(ValueError, match="different rows of poetry"):
        section(make_folder(tmp_path / "run", records))


@pytest.mark.whole
def test_the_page_builds_before_the_run_is_made(tmp_path, monkeypatch):
    assert section(tmp_path / "nothing") == []
    monkeypatch.setattr("results_table.three_seeds", lambda folder: [])
    assert "The real run, three seeds" not in results_table.page()
