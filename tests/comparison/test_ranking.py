"""Statistics over a grid of systems: values by hand from the records, ties, Holm's correction, missing cells."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from compare_records import TASKS, compare_records
from radargate.comparison.analysis import rotation_pairs
from radargate.comparison.ranking import PairedTest, compare_pairs, count_wins, leader, standings, task_worth
from radargate.comparison.results import ORACLE, read_results
from radargate.errors import RadarGateError
from radargate.evaluation.metrics import paired_difference
from radargate.evaluation.resampling import (
    RESAMPLES,
    all_flips_p,
    bootstrap_intervals,
    holm,
    sign_flip_p,
    t_p,
    t_test_p,
)
from radargate.io.records import read_records
from radargate.paper.findings import read_findings

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "results" / "experiments"


@pytest.fixture(scope="module")
def records():
    return compare_records()


@pytest.fixture(scope="module")
def grid(records):
    return read_results(records)


def rows_of(records, label, task, metric):
    """Row values averaged over seeds, straight from the records."""
    found = [r["rows"] for r in records if r["suite"] == "eval" and r["system"] == label and r["task"] == task]
    values = [r["correct"] if metric == "acc" else np.divide(r["nll_sum"], r["tokens"]) for r in found]
    return np.mean(values, axis=0)


@pytest.mark.parametrize("metric", ["acc", "nll"])
def test_standings_are_the_records_means_and_seeds(records, grid, metric):
    ranked = standings(grid, metric)
    assert {s.label for s in ranked} == {r["cell"]["label"] for r in records if r["suite"] == "cell"} | {ORACLE}
    assert [s.value for s in ranked] == sorted((s.value for s in ranked), reverse=metric == "acc")
    for standing in ranked:
        if standing.label == ORACLE:
            expected = np.mean([rows_of(records, f"expert: {t}", t, metric).mean() for t in TASKS])
        else:
            expected = np.mean([rows_of(records, standing.label, t, metric).mean() for t in TASKS])
        assert standing.value == pytest.approx(expected, abs=1e-12)
        assert standing.low < standing.value < standing.high
        assert standing.seed_low - 1e-12 <= standing.value <= standing.seed_high + 1e-12
    seeds = {s.label: s.seeds for s in ranked}
    assert (seeds["radar (mole)"], seeds["mlp (omoe)"], seeds["base"]) == (3, 2, 1)
    assert ranked[0].label == ORACLE and leader(grid, ranked).label != ORACLE


def test_a_systems_interval_does_not_depend_on_the_others(grid):
    radar = grid.systems["radar (mole)"]
    alone = [radar.rows["nll"][task].mean(0)[:, None] for task in grid.tasks]
    low, high = bootstrap_intervals(alone)
    shown = next(s for s in standings(grid, "nll") if s.label == "radar (mole)")
    assert (shown.low, shown.high) == pytest.approx((low[0], high[0]), abs=1e-12)


def test_paired_tests_agree_with_the_single_one_and_with_holm_by_hand(records, grid):
    pairs = [("radar (mole)", other) for other in ("stretch (mole)", "mlp (mole)", "uniform", "base")]
    tests = compare_pairs(grid, "nll", pairs)
    for test in tests:
        first, second = ({t: rows_of(records, name, t, "nll") for t in TASKS} for name in (test.first, test.second))
        single = paired_difference(first, second)
        assert (test.difference, test.low, test.high) == pytest.approx(
            (single["difference"], single["low"], single["high"]), abs=1e-12
        )
        assert abs(test.p - single["p"]) < 0.04, "20,000 flips against 2,000"
    assert [t.holm for t in tests] == holm([t.p for t in tests])
    assert tests[-1].better == "radar (mole)"
    assert compare_pairs(grid, "nll", [("base", "radar (mole)")])[0].better == "radar (mole)"
    assert compare_pairs(grid, "nll", [("uniform", "ties")])[0].better is None


def test_holm_steps_down_stays_monotone_and_stops_at_one():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flips_find_the_exact_p_of_a_small_sample():
    # four equal differences: of 16 sign patterns two are as extreme
    p = sign_flip_p([np.ones((4, 1))], resamples=RESAMPLES * 10)
    assert p[0] == pytest.approx(2 / 16, abs=0.01)
    assert sign_flip_p([np.zeros((4, 1))])[0] == 1.0


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (10, 2.22814), (30, 2.04227)]
)
def test_students_p_is_that_of_the_printed_tables(df, t):
    assert t_p(t, df) == pytest.approx(0.05, abs=1e-6)
    assert t_p(0, df) == 1.0 and t_p(1e9, df) == pytest.approx(0, abs=1e-8)


def test_over_seeds_a_paired_t_test_by_hand():
    # mean 2, standard deviation 1, so t = 2 √3 = 3.4641; with two degrees of freedom p = 1 − t / √(t² + 2)
    assert t_test_p([1.0, 2.0, 3.0]) == pytest.approx(1 - 12**0.5 / 14**0.5, abs=1e-12) == t_test_p([-3.0, -1.0, -2.0])
    # t = 0.5 / (√0.5 / √2) = 1; with one degree p = 1 − 2/π arctan t
    assert t_test_p([0.0, 1.0]) == pytest.approx(0.5, abs=1e-12)
    assert t_test_p([0.3]) is None and t_test_p([0.0, 0.0, 0.0]) == 1.0 and t_test_p([0.2, 0.2]) == 0.0


def test_over_tasks_all_flips_of_signs_by_hand():
    assert all_flips_p([1.0, 2.0, 3.0]) == 2 / 8
    # sums as large as |4 - 1| = 3: ±(4+1), ±(4-1), so all four
    assert all_flips_p([4.0, -1.0]) == 1.0
    # of 16 sums two are ±9, and four more are ±7 (either 1 turned)
    assert all_flips_p([1.0, 2.0, 5.0, 1.0]) == 2 / 16
    assert all_flips_p([1.0, 2.0, 5.0, -1.0]) == 6 / 16  # observed is 7
    assert all_flips_p([0.5]) == 1.0 and all_flips_p([0.0, 0.0]) == 1.0
    assert all_flips_p([1.0] * 16) == 2 / 2**16 and all_flips_p([1.0] * 17) is None


def test_units_of_chance_are_the_pairs_seeds_and_tasks(records, grid):
    pairs = [("radar (mole)", "stretch (mole)"), ("radar (omoe)", "mlp (omoe)"), ("radar (mole)", "base")]
    pairs += [("uniform", "base")]
    means = {}
    for r in records:
        if r["suite"] == "eval" and "rows" in r:
            value = np.mean(np.divide(r["rows"]["nll_sum"], r["rows"]["tokens"]))
            means.setdefault((r["system"], r["cell"]["seed"]), {})[r["task"]] = value

    def seeds_of(label):
        return {s: np.mean(list(tasks.values())) for (name, s), tasks in means.items() if name == label}

    for test, count in zip(compare_pairs(grid, "nll", pairs), (3, 2, 3, 1), strict=True):
        ours, theirs = seeds_of(test.first), seeds_of(test.second)
        gaps = [value - theirs.get(s, theirs.get(None)) for s, value in ours.items() if s in theirs or None in theirs]
        assert test.seeds == len(gaps) == count and test.p_seeds == (
            None if count == 1 else pytest.approx(t_test_p(gaps), abs=1e-9)
        )
        tasks = [rows_of(records, test.first, t, "nll") - rows_of(records, test.second, t, "nll") for t in TASKS]
        assert test.p_tasks == all_flips_p([float(task.mean()) for task in tasks])


@pytest.mark.parametrize(
    ("holm_p", "p_seeds", "seeds", "better"),
    [
        (0.01, 0.04, 3, "a"),
        (0.01, 0.06, 3, None),
        (0.06, 0.01, 3, None),
        (0.01, 0.9, 2, "a"),  # too few to be asked
        (0.01, None, 1, "a"),
    ],
)
def test_better_takes_rows_and_seeds_where_there_are_three(holm_p, p_seeds, seeds, better):
    test = PairedTest("acc", "a", "b", 0.1, 0.0, 0.2, 0.01, holm_p, p_seeds, 0.5, seeds)
    assert test.better == better


def test_stored_records_give_the_same_three_p_values_as_an_audit_with_code_of_its_own():
    (grid,) = read_findings(read_records(EXPERIMENTS / "learnable" / "records.jsonl")).by_value.values()
    audited = {
        "stretch": (-0.035, 0.002, 0.053, 0.19),
        "nexus": (-0.021, 0.015, 0.23, 0.19),
        "tutel": (-0.035, 0.002, 0.18, 0.13),
        "rotation": (-0.119, 0.000, 0.08, 0.19),
        "signed": (-0.092, 0.002, 0.12, 0.19),
        "lora": (-0.056, 0.000, 0.18, 0.06),
    }
    for test in compare_pairs(grid, "nll", [("radar (mole)", f"{name} (mole)") for name in audited]):
        difference, rows, seeds, tasks = audited[test.second.removesuffix(" (mole)")]
        assert (test.difference, test.p) == pytest.approx((difference, rows), abs=6e-4)
        assert (test.p_seeds, test.p_tasks) == pytest.approx((seeds, tasks), abs=6e-3)
        assert test.holm < 0.05 and test.better is None  # over rows all of them, over seeds none


def test_seeds_are_paired_along_an_axis_too():
    found = read_findings(read_records(EXPERIMENTS / "crowded" / "records.jsonl"))
    first, last = found.by_value.values()
    tasks = first.tasks_of("nll")

    def changes(label):
        return last.systems[label].seed_means("nll", tasks) - first.systems[label].seed_means("nll", tasks)

    for test in found.change["nll"]:
        gaps = changes(test.first.partition(", experts")[0])
        assert test.seeds == len(gaps) == 3 and test.p_seeds == pytest.approx(t_test_p(gaps), abs=1e-9)
        assert test.difference == pytest.approx(gaps.mean(), abs=1e-12)
    for test in found.resists["nll"]:
        gaps = changes(test.first) - changes(test.second)
        assert test.p_seeds == pytest.approx(t_test_p(gaps), abs=1e-9) and test.p_tasks >= 2 / 2 ** len(tasks)


def test_wins_ties_and_losses_are_counted_a_task_and_seed_at_a_time(records, grid):
    def by_seed(label, task, metric):
        rows = {
            r["cell"]["seed"]: r["rows"]
            for r in records
            if r["suite"] == "eval" and r["system"] == label and r["task"] == task
        }
        return {
            s: np.mean(r["correct"]) if metric == "acc" else np.mean(np.divide(r["nll_sum"], r["tokens"]))
            for s, r in rows.items()
        }

    for first, second, count in [
        ("radar (omoe)", "mlp (omoe)", 2 * 4),  # one seed of mlp is missing
        ("radar (mole)", "uniform", 3 * 4),  # a system without seeds meets every seed
        ("uniform", "ties", 4),
    ]:
        for metric in ("acc", "nll"):
            won = count_wins(grid, metric, [(first, second)])[0]
            expected = [0, 0, 0]
            for task in TASKS:
                a, b = by_seed(first, task, metric), by_seed(second, task, metric)
                for seed in set(a) | set(b):
                    one, two = a.get(seed, a.get(None)), b.get(seed, b.get(None))
                    if (seed is None and len(a) + len(b) > 2) or one is None or two is None:
                        continue
                    better = one > two if metric == "acc" else one < two
                    expected[1 if abs(one - two) < 1e-12 else 0 if better else 2] += 1
            assert [won.wins, won.ties, won.losses] == expected
            assert sum(expected) == count
            assert won.swapped().counts == won.counts[::-1]
    ties = count_wins(grid, "acc", [("uniform", "ties")])[0]
    assert ties.counts == (0, 4, 0)


def test_tasks_count_where_their_own_expert_beats_the_base(records, grid):
    def counting(grid):
        return [worth.task for worth in task_worth(grid, "nll") if worth.counts]

    assert counting(grid) == list(TASKS)
    worse = copy.deepcopy(records)
    for r in worse:
        if r["suite"] == "eval" and r["task"] == "aqua" and r["system"] == "expert: aqua":
            r["rows"]["nll_sum"] = [9.0 * t for t in r["rows"]["tokens"]]
    assert counting(read_results(worse)) == [t for t in TASKS if t != "aqua"]
    without = [r for r in records if r.get("cell", {}).get("label") != "expert: aqua"]
    assert task_worth(read_results(without), "acc") == [] and ORACLE not in read_results(without).systems


def test_only_finished_cells_count_and_the_plan_is_known(records, grid):
    assert (grid.finished, grid.planned) == (43, 44)
    cut = records[: next(i for i, r in enumerate(records) if r.get("system") == "signed (hydra)") + 2]
    part = read_results(cut)
    assert part.planned is None and part.compare is None and "signed (hydra)" not in part.systems
    assert standings(part, "acc")
    half = [r for r in records if not (r.get("task") == "aqua" and r["cell"]["id"] == "radar (mole)-1")]
    assert read_results(half).incomplete == ("radar (mole)",) and read_results(half).systems["radar (mole)"].seeds == (
        0,
        2,
    )
    with pytest.raises(RadarGateError, match="no finished cell"):
        read_results(records[:3])


def test_a_later_cell_of_the_same_system_and_seed_replaces_the_earlier(records):
    again = []
    for r in compare_records(gates=("radar",), architectures=("mole",), seeds=1, rules=(), missing=None):
        if r["suite"] in ("cell", "eval") and r["cell"]["label"] == "radar (mole)":
            r = copy.deepcopy(r)
            r["cell"]["id"] = "other settings"
            if "rows" in r:
                r["rows"]["correct"] = [1] * len(r["rows"]["id"])
            again.append(r)
    radar = read_results([*records, *again]).systems["radar (mole)"]
    assert radar.seeds == (0, 1, 2)
    assert radar.seed_means("acc", TASKS)[0] == 1.0


def test_a_gate_scored_again_without_its_turn_is_a_system_of_its_own_and_no_further_cell(records, grid):
    again = []
    for r in records:
        again.append(r)
        if r["suite"] == "eval" and r["cell"]["label"] == "radar (mole)" and "rows" in r:
            second = copy.deepcopy(r)
            second["cell"]["label"] = second["system"] = "radar with Q = 0 (mole)"
            second["rows"]["nll_sum"] = [
                value + count for value, count in zip(r["rows"]["nll_sum"], r["rows"]["tokens"], strict=True)
            ]
            again.append(second)
    found = read_results(again)
    assert set(found.systems) == {*grid.systems, "radar with Q = 0 (mole)"} and found.finished == grid.finished
    turned, unturned = found.systems["radar (mole)"], found.systems["radar with Q = 0 (mole)"]
    assert unturned.seeds == turned.seeds and unturned.measured("mean_angle") is None
    for task in TASKS:
        assert np.array_equal(turned.rows["nll"][task], grid.systems["radar (mole)"].rows["nll"][task])
        assert np.allclose(unturned.rows["nll"][task], turned.rows["nll"][task] + 1)
    assert (turned.label, unturned.label) in rotation_pairs(found) and not any(
        "Q = 0" in label for pair in rotation_pairs(grid, "control") for label in pair
    )


def test_cells_that_the_last_request_did_not_plan_are_left_out_even_scored_on_other_rows(records):
    plan = [r["cell"]["id"] for r in records if r["suite"] == "cell"]
    stray = copy.deepcopy(
        [r for r in records if r["suite"] in ("cell", "eval") and r["cell"]["label"] == "radar (mole)"]
    )
    for r in stray:
        r["cell"]["id"] += " with another limit"
        if "rows" in r:
            r["rows"] = {key: values[:3] for key, values in r["rows"].items()}
    asked = copy.deepcopy(records)
    asked[-1]["request"]["plan"] = plan
    seen, wanted = read_results([*asked[:-1], *stray, asked[-1]]), read_results(records)
    assert (seen.finished, seen.incomplete) == (wanted.finished, wanted.incomplete)
    assert (
        seen.systems["radar (mole)"].seed_means("acc", TASKS).tolist()
        == wanted.systems["radar (mole)"].seed_means("acc", TASKS).tolist()
    )


def test_cells_scored_on_different_rows_are_refused(records):
    other = copy.deepcopy(records)
    next(r for r in other if r.get("task") == "creak" and r["system"] == "uniform")["rows"]["id"][0] = "creak-99"
    with pytest.raises(RadarGateError, match="creak was scored on different rows for base and uniform"):
        read_results(other)


def test_ranking_knows_nothing_of_torch():
    import subprocess
    import sys

    code = "import sys, radargate.comparison.ranking; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
