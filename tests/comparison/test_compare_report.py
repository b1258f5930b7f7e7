"""The report of a comparison: every number is the records', every chart is drawn, phone and desktop, no console error."""

from __future__ import annotations

import base64
import copy
import csv
import html
import io
import itertools
import re
import shutil
import subprocess

import numpy as np
import pytest

from compare_records import TASKS, compare_records
from conftest import HANG
from radargate.comparison import page as compare
from radargate.comparison.analysis import analyse
from radargate.comparison.page import compare_page, compare_table, write_csv
from radargate.errors import OptionError
from radargate.report import page
from radargate.report.labels import place_labels, spread
from test_quickstart import cells

HALF = 0.000501  # rounding to three places
CHARTS = 2 + 3 + 3  # rankings, curves of three architectures, costs


@pytest.fixture(scope="module")
def records():
    return compare_records()


@pytest.fixture(scope="module")
def report(records):
    return compare_page(records)


def table_of(text: str, caption: str) -> list[list[str]]:
    """Header and rows of the page's table whose caption begins so."""
    found = [t for t in re.findall(r"<table.*?</table>", text, re.S) if f"<caption><span>{html.escape(caption)}" in t]
    assert len(found) == 1, f"{len(found)} tables begin with {caption!r}"
    return cells(found[0])


def files_of(text: str) -> dict[str, list[dict[str, str]]]:
    """The CSV files inside a page."""
    links = re.findall(r'<a download="([^"]*)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', text)
    return {name: list(csv.DictReader(io.StringIO(base64.b64decode(data).decode()))) for name, data in links}


def mean_of(records, label, task, metric) -> float:
    rows = [r["rows"] for r in records if r["suite"] == "eval" and r["system"] == label and r["task"] == task]
    return float(np.mean([r["correct"] if metric == "acc" else np.divide(r["nll_sum"], r["tokens"]) for r in rows]))


def labels_of(records) -> set[str]:
    return {r["cell"]["label"] for r in records if r["suite"] == "cell"}


def test_the_rankings_numbers_are_the_records(records, report):
    header, *rows = table_of(report, "All systems")
    places = header.index("accuracy"), header.index("NLL")
    shown = {row[0]: [row[i] for i in places] for row in rows}
    for label in labels_of(records):
        expected = [np.mean([mean_of(records, label, t, m) for t in TASKS]) for m in ("acc", "nll")]
        assert [float(v) for v in shown[label]] == pytest.approx(expected, abs=HALF), label
    assert set(shown) == labels_of(records) | {"oracle"}
    assert shown["oracle"][0] == f"{np.mean([mean_of(records, f'expert: {t}', t, 'acc') for t in TASKS]):.3f}"
    ranks = {row[0]: row[1] for row in rows}
    assert ranks["oracle"] == "–" and ranks["uniform"] == ranks["ties"], "equals share a rank"


@pytest.mark.parametrize(("metric", "caption"), [("acc", "Accuracy of every"), ("nll", "NLL of every")])
def test_the_task_tables_numbers_are_the_records_and_dark_is_good(records, report, metric, caption):
    header, *rows = table_of(report, caption)
    assert tuple(header[1:]) == TASKS
    for label, *values in rows:
        if label != "oracle":
            expected = [mean_of(records, label, task, metric) for task in TASKS]
            assert [float(v) for v in values] == pytest.approx(expected, abs=10 * HALF), label
    source = next(t for t in re.findall(r"<table.*?</table>", report, re.S) if f"<span>{caption}" in t)
    own, base = (re.search(rf"<tr><th[^>]*>{name}</th>(.*?)</tr>", source).group(1) for name in ("oracle", "base"))
    assert re.findall(r"shade(\d)", own) == ["9"] * 4 and set(re.findall(r"shade(\d)", base)) <= {"0", "1"}


def test_costs_gates_and_curves_are_the_records(records, report):
    radar = [r["metrics"] for r in records if r["suite"] == "cell" and r["cell"]["label"] == "radar (mole)"]
    cost = next(row for row in table_of(report, "What each system cost") if row[0] == "radar (mole)")
    assert cost[1:5] == [
        f"{radar[0]['trained_parameters']:,}",
        *(f"{np.mean([m[key] for m in radar]):,.0f}" for key in ("train_seconds", "score_seconds", "peak_memory_mb")),
    ]
    gate = next(row for row in table_of(report, "What each gate does") if row[0] == "radar (mole)")
    assert gate[1:5] == [
        "2",
        f"{np.mean([m['entropy'] for m in radar]):.3f}",
        f"{np.mean([m['experts_in_use'] for m in radar]):.2f}",
        f"{np.mean([m['mean_angle'] for m in radar]):.3f}",
    ]
    files = files_of(report)
    curve = {float(r["step"]): float(r["loss"]) for r in files["curves_mole.csv"] if r["system"] == "radar (mole)"}
    assert curve == pytest.approx({s: np.mean([m["curve"][s - 1][1] for m in radar]) for s in range(1, 31)})
    used = next(r for r in files["usage.csv"] if (r["system"], r["task"]) == ("radar (mole)", "creak"))
    assert float(used["gsm8k"]) == pytest.approx(np.mean([m["usage"]["creak"]["gsm8k"] for m in radar]))


def test_conditions_say_what_was_run_and_how_long_it_took(records, report):
    facts = dict(table_of(report, "Where these values come from")[1:])
    assert facts["time predicted"] == "5,000 s (1.4 h)" and facts["time taken"] == "6,100 s (1.7 h)"
    assert facts["cells"] == "43 of 44" and facts["seeds"] == "3"
    assert "aqua 40" in facts["tasks and rows"] and "aqua hash-of-aqua" in facts["hash of each task's rows"]
    assert facts["settings common to all"] == "steps 30, batch_size 8"
    assert facts["commit"].startswith(str(records[0]["commit"])[:12])
    assert {row[0]: row[1] for row in table_of(report, "Settings that differ")[1:]}["radar (mole)"] == "0.02"


def test_every_paired_test_and_win_count_is_in_the_tables(records, report):
    analysis = analyse(records)
    header, *rows = table_of(report, "Radar minus stretch")
    assert len(rows) == 2 * 9, "stretch, signed and mlp under three architectures, by two metrics"
    for row, test in zip(rows, [*analysis.rotation["acc"], *analysis.rotation["nll"]], strict=True):
        assert row[0] == f"{test.first} − {test.second}"
        assert row[header.index("mean")] == f"{test.difference:+.3f}"
        expected = "< 0.0001" if test.holm < 0.0001 else f"{test.holm:.4f}"
        assert row[header.index("Holm p")] == expected
        assert row[header.index("p (tasks)")] == f"{test.p_tasks:.4f}"
        assert row[header.index("better")] == (test.better or "not significant") + " (rows only)" * bool(
            test.better and test.seeds == 2
        )
    assert sum(row[-1].endswith("(rows only)") for row in rows) == 2, "mlp (omoe) lacks a seed, by either metric"
    systems = len(labels_of(records))
    assert len(files_of(report)["wins_all_pairs.csv"]) == systems * (systems - 1)
    wins = {(r["first"], r["second"], r["metric"]): r for r in files_of(report)["wins_all_pairs.csv"]}
    tie = wins["uniform", "ties", "accuracy"]
    assert (tie["wins"], tie["ties"], tie["losses"]) == ("0", "4", "0")
    rates = {row[0]: row for row in table_of(report, "Each system against all others")[1:]}
    ours = [r for r in wins.values() if r["metric"] == "accuracy" and "base" in (r["first"], r["second"])]
    assert int(rates["base"][2]) == sum(int(r["wins" if r["first"] == "base" else "losses"]) for r in ours)


def answers(records) -> dict[str, list[str]]:
    """Question of the summary → its answers by accuracy and by NLL."""
    lines = compare_table(records).partition("| system |")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_summary_follows_the_numbers(records):
    assert "43 of 44 cells finished" in compare_table(records)
    found = answers(records)
    assert found["radar significantly better than stretch"][1] == "3 of 3 architectures"
    assert found["question"][1] == "NLL (lower is better)"
    analysis = analyse(records)
    others = len(labels_of(records)) - 1
    for place, metric in enumerate(("acc", "nll")):
        best = analysis.leaders[metric]
        assert found["best system"][place] == best
        behind = {t.second for t in analysis.against_leader[metric] if t.better == best}
        assert found["significantly worse than it"][place] == f"{len(behind)} of {others}"
        close = {name for name in found["not significantly worse"][place].split(", ") if name != "–"}
        assert close == labels_of(records) - behind - {best}
    assert found["tasks whose own expert beats the base (p < 0.05)"][1].startswith("4 of 4: ")
    worse = copy.deepcopy(records)
    for r in worse:
        if r["suite"] == "eval" and r["system"].startswith("radar") and "rows" in r:
            r["rows"]["nll_sum"] = [6.0 * t for t in r["rows"]["tokens"]]
    found = answers(worse)
    assert found["radar significantly better than stretch"][1] == "0 of 3 architectures"
    assert found["radar significantly worse than stretch"][1] == "3 of 3 architectures"
    assert re.fullmatch(r"stretch \(\w+\)", found["best system"][1])
    alone = [r for r in worse if r["suite"] == "compare" or r["cell"]["system"] != "stretch"]
    found = answers(alone)
    assert found["radar significantly better than stretch and all controls"][1] == "0 of 3 architectures"
    assert found["radar significantly better than stretch"][1] == "–"
    level = [r for r in records if r["suite"] == "compare" or r["cell"]["label"] in ("uniform", "ties")]
    assert answers(level)["best system"][0] == "uniform" and answers(level)["level with it"][0] == "ties"


def test_what_rotation_costs_is_a_ratio_of_the_records(records, report):
    ratio = {}
    for label in ("radar (mole)", "stretch (mole)"):
        found = [r["metrics"] for r in records if r["suite"] == "cell" and r["cell"]["label"] == label]
        ratio[label] = [np.mean([m[key] for m in found]) for key in ("trained_parameters", "train_seconds")]
    row = next(row for row in table_of(report, "What rotation costs")[1:] if row[0] == "mole")
    assert row[1:] == [f"{a / b:.1f}" for a, b in zip(*ratio.values(), strict=True)]


def test_markdown_and_csv_hold_the_same_tables(records, tmp_path):
    markdown = compare_table(records)
    row = next(line for line in markdown.splitlines() if line.startswith("| radar (hydra) |"))
    value = np.mean([mean_of(records, "radar (hydra)", t, "acc") for t in TASKS])
    assert row.split(" | ")[3] == f"{value:.3f}"
    files = {path.name: path for path in write_csv(records, tmp_path / "tables")}
    ranking = {r["system"]: r for r in csv.DictReader(files["ranking.csv"].open())}
    assert float(ranking["radar (hydra)"]["acc"]) == pytest.approx(value, abs=1e-12)
    assert ranking["oracle"]["rank"] == "" and ranking["mlp (omoe)"]["seeds"] == "2"
    assert set(files_of(compare_page(records))) - set(files) == {"wins_rotation.csv", "conditions.csv"}


def test_an_interrupted_grid_still_makes_a_page(records):
    for count in (6, 30, 60, 130):  # base alone, then experts, rules and gates come in
        text = compare_page(records[:count])
        assert "of an unknown number of cells finished" in text and "All systems" in text
    text = compare_page([r for r in records if r.get("cell", {}).get("label") not in ("radar (mole)", "base")])
    assert "radar (mole) −" not in text and "radar (hydra) −" in text


def test_names_from_records_cannot_break_the_page(records):
    hostile = copy.deepcopy(records)
    for r in hostile:
        if r.get("cell", {}).get("label") == "ties":
            r["cell"]["label"] = '<script>alert("x")</script> & co'
    text = compare_page(hostile)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_another_reference_is_used_and_an_unknown_one_refused(records):
    label = "union LoRA on all rows"
    assert f"Every system minus {label}" in compare_page(records, reference=label)
    with pytest.raises(OptionError, match="unifrom"):
        compare_page(records, reference="unifrom")


def test_the_page_can_be_read_aloud(report):
    tables = re.findall(r"<table.*?</table>", report, re.S)
    assert tables and all("<caption><span>" in t and "scope=col" in t and "scope=row" in t for t in tables)
    charts = re.findall(r'<svg class="chart" role="img" aria-label="([^"]+)"', report)
    assert len(charts) == len(set(charts)) == CHARTS
    levels = [int(n) for n in re.findall(r"<h(\d)", report)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = re.findall(r'\bid="([^"]*)"', report)
    assert all(f'id="{target}"' in report for target in re.findall(r'href="#([a-z-]+)"', report))
    assert not [i for i in set(ids) if ids.count(i) > 1 and not re.match(r"[mpC]", i)]
    assert not re.findall(r'(?:src|href)="http', report), "the page loads nothing"


def test_labels_keep_apart_and_inside():
    places = spread([0.5, 0.5, 0.5, 0.98, 1.0], 0.1, 0.0, 1.0)
    ordered = sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered)) and ordered[-1] <= 1.0
    assert spread([3.0, 1.0], 0.1, 0.0, 4.0) == [3.0, 1.0], "labels with room stay where they belong"
    points = [(50.0, 50.0)] * 12
    corners = place_labels(points, [(30.0, 8.0)] * 12, (0.0, 0.0, 100.0, 100.0), 2.0)
    placed = [(x, y, x + 30, y + 8) for x, y in filter(None, corners)]
    assert 2 <= len(placed) < 12
    for i, a in enumerate(placed):
        assert a[0] >= 0 and a[2] <= 100
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in placed[:i])


def test_ink_stands_out_on_every_shade():
    def light(colour: list[float]) -> float:
        linear = [c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text = page.page("t", [page.table(["a", "b"], [["x", "1"]], shades=[[0.5]])])
    styles = re.findall(r"shade\d \{ background: rgb\(([\d, ]+)\); color: (#\w+)", text)
    assert len(styles) == 10
    for back, ink in styles:
        pair = sorted([light([float(c) for c in back.split(",")]), 1.0 if ink == "#fff" else 0.0])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_opens_without_console_error_and_fits(report, tmp_path, width):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    # a frame has exactly this width, and the outer page may measure inside it
    measure = """<script>addEventListener("load", () => { const d = document.querySelector("iframe").contentDocument;
      d.querySelectorAll("details").forEach(e => e.open = true);
      const drawn = [...d.querySelectorAll("svg.chart")].filter(s => s.getBoundingClientRect().width > 250 && s.getBBox().height > 100);
      const out = document.createElement("pre"); out.textContent = "wide " + d.documentElement.scrollWidth + " drawn " + drawn.length +
        " tables " + [...d.querySelectorAll("table")].filter(t => t.getBoundingClientRect().height > 20).length;
      document.body.append(out); });</script>"""
    outer = tmp_path / "frame.html"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8">{measure}<iframe width={width} height=900 style="border:0" srcdoc="{html.escape(report)}"></iframe>'
    )
    words = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--v=0",
        "--window-size=1400,1000",
        "--dump-dom",
        outer.as_uri(),
    ]
    result = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert "CONSOLE" not in result.stderr
    wide, drawn, shown = map(int, re.search(r"wide (\d+) drawn (\d+) tables (\d+)", result.stdout).groups())
    assert wide <= width, "tables scroll inside their own boxes, never the page"
    assert (drawn, shown) == (CHARTS, report.count("<table"))


def test_nothing_of_the_report_loads_torch():
    import sys

    code = f"import sys, {compare.__name__}; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
