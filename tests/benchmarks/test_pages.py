"""Pages made from records: what scores become systems, how templates are filled, and what they refuse to say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import experiment_pages
import records_page
import sources
import templates
from radargate.comparison.results import ORACLE
from radargate.evaluation.metrics import paired_difference

ROWS = 20


def scored(system: str, task: str, nll: np.ndarray) -> dict:
    rows = {
        "id": [f"{task}/{i}" for i in range(ROWS)],
        "correct": (nll < 1).astype(int).tolist(),
        "nll_sum": (2 * nll).tolist(),
        "tokens": [2] * ROWS,
    }
    machine = {"cpu": "a CPU", "cores": 2}
    return {"schema": 1, "suite": "eval", "case": f"{system}/{task}", "system": system, "task": task, "metrics": {"n": ROWS}, "rows": rows, "machine": machine, "date": "2026-01-02T03:04:05"}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two tasks: the base, radar with two seeds, a better `select`, and an expert of each task."""
    generator = np.random.default_rng(3)
    records = []
    for task in ("law", "poetry"):
        hard = generator.normal(0, 0.3, ROWS)
        levels = {"smollm2-135m": 3.0, "radar-0": 1.0, "radar-1": 1.2, "select": 0.5, task: 0.4}
        records += [scored(name, task, level + hard) for name, level in levels.items()]
    records.append({**records[0], "task": "mean", "rows": None})
    del records[-1]["rows"]
    (tmp_path / "own_run").mkdir()
    file = tmp_path / "own_run" / "scores.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(sources, "RESULTS", tmp_path)
    monkeypatch.setattr(experiment_pages, "ROOT", tmp_path)
    return records


def by_hand(records, system: str) -> np.ndarray:
    """NLL of a run, [tasks, rows]."""
    return np.array(
        [np.array(r["rows"]["nll_sum"]) / 2 for r in records if r["system"] == system and r["task"] != "mean"]
    )


def test_scores_become_systems_with_seeds_and_an_oracle(folder):
    (source,) = sources.sources().values()
    assert source.name == "own-run" and source.rows == 2 * ROWS and source.seeds == 2
    assert set(source.results.systems) == {"base", "radar", "select", ORACLE}
    assert source.results.systems["radar"].seeds == (0, 1)
    radar = np.mean([by_hand(folder, f"radar-{seed}") for seed in (0, 1)], axis=0)
    assert source.standing("radar", "nll").value == pytest.approx(radar.mean())
    test = source.test("select", "radar", "nll")
    difference = by_hand(folder, "select") - radar
    expected = paired_difference(dict(enumerate(difference)), dict(enumerate(np.zeros_like(difference))))
    assert test.difference == pytest.approx(expected["difference"]) and test.seeds == 2


def test_a_page_has_table_conditions_commands_and_a_person_s_words(folder, tmp_path):
    (tmp_path / "own_run" / "about.md").write_text("Is law like poetry?\n")
    (tmp_path / "own_run" / "commands.sh").write_text("#!/bin/sh\nset -euo pipefail\nradargate eval bundle\n")
    made = experiment_pages.pages(sources.sources())
    page = made["results/own-run.md"]
    assert "Is law like poetry?" in page and "radargate eval bundle" in page and "set -euo" not in page
    table = dict(re.findall(r"^\| `([^`]+)` \| (\S+) \[", page, re.M))
    assert set(table) == {"base", "radar", "select", ORACLE}
    assert f"{sources.sources()['own-run'].standing('radar', 'acc').value:.3f}" == table["radar"]
    assert "2026-01-02" in page and "<svg" in made["results/own-run-1.svg"]


def test_templates_are_filled_from_records_and_refuse_what_no_longer_holds(folder):
    found = sources.sources()
    text = '{{ mean("own-run", "select", "nll") }} {{ effect("own-run", "select", "radar", "nll") }}; {{ sample("own-run", "radar") }}'
    value, change = found["own-run"].standing("select", "nll").value, found["own-run"].test("select", "radar", "nll")
    assert templates.fill(text, found) == (
        f"{value:.2f} {templates.signed(change.difference)} ({templates.signed(change.low)} to {templates.signed(change.high)}); "
        f"n = {2 * ROWS} rows of 2 tasks, 2 seeds"
    )
    holds = '{{{{ holds(test("own-run", "select", "radar", "nll").difference {} 0) }}}}'
    assert templates.fill(holds.format("<"), found) == ""
    with pytest.raises(templates.OutdatedSentence, match=r"results\.md: a sentence no longer agrees"):
        templates.fill(holds.format(">"), found, "results.md")


@pytest.mark.parametrize(("value", "text"), [(-0.306, "−0.31"), (0.004, "0.00"), (-0.004, "0.00"), (0.1, "+0.10")])
def test_an_effect_has_two_digits_and_a_sign(value, text):
    assert templates.signed(value) == text


def test_the_table_of_records_holds_each_of_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(records_page, "RESULTS", tmp_path)
    page = records_page.records_page()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["rows"]) == len(folder)
    systems = [data["texts"][2][row[2]] for row in data["rows"]]
    assert systems == [record["system"] for record in folder]
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is loaded"
