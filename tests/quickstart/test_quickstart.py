"""The quickstart on small settings, and its report: numbers equal the records, charts drawn, no console error."""

from __future__ import annotations

import errno
import functools
import html
import importlib
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

import sweeps
from conftest import HANG
from radargate.cli import flags
from radargate.cli.quickstart import summary
from radargate.data.builtin import CATEGORIES
from radargate.errors import AdapterError
from radargate.experts.adapters import read_adapter
from radargate.experts.shipped import FOLDER, shipped_experts
from radargate.io.records import read_records
from radargate.quickstart.options import Quickstart
from radargate.quickstart.page import COMPARED, TRAINED, quickstart_page
from radargate.quickstart.run import quickstart

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    """One quickstart of two steps and one row a task: of two tasks, and of all ten for --all."""
    if not sweeps.everything:
        module = importlib.import_module("radargate.quickstart.run")
        request.addfinalizer(functools.partial(setattr, module, "DATA", module.DATA))
        module.DATA = "builtin:science"  # one task of choices, one of free answers
    out = tmp_path_factory.mktemp("quickstart")
    options = Quickstart(steps=2, batch_size=2, limit=1, max_new_tokens=2)
    quickstart(out, options, device="cpu")
    return out, options


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.S)
    return [[html.unescape(c) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)] for row in rows]


def test_shipped_experts_are_small_checked_and_whole(tmp_path, monkeypatch):
    experts = shipped_experts()
    assert len(experts) == 5
    assert sum((p / "adapter_model.safetensors").stat().st_size for p in experts.values()) <= 12e6
    for name, folder in experts.items():
        assert len(read_adapter(name, folder).sites) == 60
        assert (folder / "README.md").is_file()
    shutil.copytree(FOLDER, tmp_path / "shipped")
    file = tmp_path / "shipped" / "science" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr("radargate.experts.shipped.FOLDER", tmp_path / "shipped")
    with pytest.raises(AdapterError, match="missing or altered"):
        shipped_experts()


def test_every_number_of_the_report_is_a_records(run):
    out, _ = run
    page = (out / "report.html").read_text()
    means = {r["system"]: r["metrics"] for r in read_records(out / "records.jsonl") if r.get("task") == "mean"}
    assert list(means) == [
        "base",
        "language",
        "mathematics",
        "reasoning",
        "translation",
        "science",
        "uniform",
        "select",
        "stretch",
        "radar",
        "router",
    ]
    shown = {row[0]: row[1:] for row in cells(page) if len(row) == 5}
    for name, metrics in means.items():
        acc, nll = metrics["acc"], metrics["nll"]
        assert shown[name] == [
            f"{acc['value']:.3f}",
            f"{acc['low']:.3f} to {acc['high']:.3f}",
            f"{nll['value']:.3f}",
            f"{nll['low']:.3f} to {nll['high']:.3f}",
        ]
    assert page.count('<svg class="chart"') == 3
    assert "http://www.w3.org" in page and not re.findall(r'(?:src|href)="http', page), "the page loads nothing"
    assert page == quickstart_page(out)
    assert "radargate choose" in summary(out)


@pytest.fixture
def recorded(tmp_path):
    """The folder of the run behind the README's table, with made-up training curves."""
    shutil.copyfile(ROOT / "benchmarks" / "results" / "quickstart" / "records.jsonl", tmp_path / "records.jsonl")
    for gate in TRAINED:
        (tmp_path / gate).mkdir()
        (tmp_path / gate / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return tmp_path


def test_each_task_is_compared_with_its_own_expert(recorded):
    records = read_records(recorded / "records.jsonl")
    scores = {(r["system"], r["task"]): r["metrics"] for r in records if r["suite"] == "eval"}
    rows = {row[0]: row for row in cells(quickstart_page(recorded)) if len(row) == len(COMPARED) + 3}
    assert rows["task"] == ["task", *COMPARED, "oracle", "its expert"]
    for category, tasks in CATEGORIES.items():
        for task in tasks:
            values = [scores[s, task]["acc"]["value"] for s in (*COMPARED, category)]
            assert rows[task][1:] == [*(f"{value:.2f}" for value in values), category]


def test_the_largest_weights_and_differences_are_the_records(recorded):
    records = read_records(recorded / "records.jsonl")
    usage = next(r["metrics"] for r in records if r["suite"] == "usage")
    rows = {row[0]: row for row in cells(quickstart_page(recorded)) if len(row) == 8}
    assert rows["task"][-2:] == ["largest", "the oracle's"]
    for category, tasks in CATEGORIES.items():
        for task in tasks:
            largest = max(usage[task], key=usage[task].get)
            assert rows[task][-2:] == [largest, "yes" if largest == category else "no"]
    means = {r["system"]: r["metrics"]["acc"] for r in records if r["suite"] == "eval" and r["task"] == "mean"}
    leader = max(COMPARED, key=lambda name: means[name]["value"])
    pairs = {row[0]: row[1:] for row in cells(quickstart_page(recorded)) if row[0].startswith(f"{leader} −")}
    assert len(pairs) == len(COMPARED) - 1
    for other in COMPARED:
        if other != leader:
            apart = means[leader]["low"] > means[other]["high"] or means[other]["low"] > means[leader]["high"]
            difference = means[leader]["value"] - means[other]["value"]
            assert pairs[f"{leader} − {other}"] == [f"{difference:+.3f}", "apart" if apart else "overlap"]


def test_commands_to_type_next_work_from_where_the_user_stands(recorded, monkeypatch):
    monkeypatch.setattr("sys.argv", [".venv/bin/radargate", "quickstart"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert flags.program() == ".venv/bin/radargate"
    assert "\n  .venv/bin/radargate generate" in summary(recorded, flags.program())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert flags.program() == "radargate"


def test_a_second_run_keeps_what_is_finished_and_needs_no_network(run, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    out, options = run
    before = (out / "records.jsonl").read_text()
    caplog.set_level("INFO", logger="radargate")
    quickstart(out, options, device="cpu")
    assert (out / "records.jsonl").read_text() == before
    assert "finished already" in caplog.text


def test_the_report_opens_in_a_browser_without_a_console_error(run, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    report = Path(run[0]) / "report.html"
    words = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        report.as_uri(),
    ]
    result = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert "CONSOLE" not in result.stderr
    assert result.stdout.count('class="chart"') == 3 and "RadarGate quickstart" in result.stdout
