"""Benchmarks by name: presets name real tasks, run from local rows, and lm-eval generates through a composed model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import radargate
from radargate.base_models.loading import load_tokenizer
from radargate.cli import main
from radargate.errors import DataError
from radargate.evaluation import harness, run
from radargate.evaluation.options import Scoring
from radargate.evaluation.presets import PRESETS, find_preset, local_rows
from radargate.evaluation.scoring import generate
from radargate.io.records import read_records

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
CHOICE = {"prompt": "is it?", "target": "yes", "choices": ["yes", "no"], "answer_index": 0}
ROWS = {
    "glue/rte": CHOICE,
    "mmlu/race": CHOICE,
    "reasoning/logiqa_en": CHOICE,
    "reasoning/lsat_ar": CHOICE,
    "reasoning/lsat_lr": CHOICE,
    "reasoning/bbh_snarks": CHOICE,
    "math/gsm8k": {"prompt": "1+1=", "target": "#### 2"},
    "math/math": {"prompt": "half?", "target": "\\frac{1}{2}"},
    "math/svamp": {"prompt": "3-1=", "target": "2"},
    **{f"translation/wmt14_en_{x}": {"prompt": "say: yes", "target": "ja, gern"} for x in ("cs", "de", "fr", "ru")},
}


@pytest.fixture
def benchmarks(tmp_path) -> Path:
    for name, row in ROWS.items():
        path = tmp_path / "data" / f"{name}.test.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            for i in range(3):
                file.write(json.dumps({**row, "prompt": f"{i} {row['prompt']}"}) + "\n")
    return tmp_path / "data"


def test_presets_name_real_tasks_and_the_page_has_them_all():
    pytest.importorskip("lm_eval")
    page = DOCS.read_text()
    for name, preset in PRESETS.items():
        assert f"`{name}`" in page
        assert harness.task_manager([task for b in preset.benchmarks for task in b.lm_eval])
        for benchmark in preset.benchmarks:
            line = next(text for text in page.splitlines() if text.startswith(f"| {benchmark.name} |"))
            for word in (
                *benchmark.lm_eval,
                *benchmark.metrics,
                *(t for place in benchmark.local for t in place.tasks or ()),
            ):
                assert f"`{word}`" in line, f"{benchmark.name} lacks {word}"
    assert find_preset("paper").max_new_tokens == 512


def test_the_preset_runs_from_local_rows(zoo, benchmarks, tmp_path, capsys):
    pytest.importorskip("math_verify")
    tiny = zoo["llama"]
    bundle, out = tmp_path / "bundle", tmp_path / "scores.jsonl"
    radargate.compose(str(tiny["base"]), tiny["adapters"], gate="radar").save_pretrained(bundle)
    words = [
        "eval",
        str(bundle),
        "--preset",
        "paper",
        "--data",
        str(benchmarks),
        "--limit",
        "2",
        "--max-new-tokens",
        "3",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in shown] == [f"bundle/{b.name}" for b in PRESETS["paper"].benchmarks]
    assert "chrF" in shown[2] and "BLEU" in shown[2] and "accuracy" in shown[3]
    records = read_records(out)
    assert {r["benchmark"] for r in records} == {"GLUE", "MMLU", "WMT14", "GSM8K", "MATH", "GPQA"}
    tasks = [r["task"] for r in records if r["task"] != "mean"]
    assert "svamp" not in tasks and "bbh_snarks" not in tasks and tasks.count("gsm8k") == 1
    assert next(r for r in records if r["task"] == "math")["metric"] == {"math": 2}
    assert all(r["metrics"]["n"] == 2 for r in records if r["task"] != "mean")


def test_a_folder_of_gpqa_comes_before_what_stands_in_for_it(benchmarks):
    def gpqa() -> list[str]:
        return list(local_rows(PRESETS["paper"], benchmarks, "test", 1)["GPQA"])

    assert gpqa() == ["logiqa_en", "lsat_ar", "lsat_lr"]
    (benchmarks / "gpqa").mkdir()
    (benchmarks / "gpqa" / "main.test.jsonl").write_text(json.dumps(CHOICE))
    assert gpqa() == ["main"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "papr"], "Unknown preset 'papr'. Did you mean 'paper'?"),
        (["--preset", "paper", "--tasks", "gsm8k"], "names its own tasks; leave out --tasks"),
        (["--preset", "paper", "--data", "nowhere"], "expects a folder that holds the folders glue, mmlu, translation"),
        (["--preset", "paper", "--data", "{tmp}"], "no folder glue for GLUE. Found: no folder; expected: glue, mmlu"),
        (["--data", "builtin:addition", "--num-fewshot", "2"], "with lm-eval tasks"),
        (["--tasks", "gsm8kk"], "Unknown lm-eval task 'gsm8kk'. Did you mean 'gsm8k'"),
    ],
)
def test_bad_requests_say_what_to_do_before_a_model_is_loaded(words, message, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    (tmp_path / "empty").mkdir()
    words = [word.replace("{tmp}", str(tmp_path / "empty")) for word in words]
    assert main(["eval", "no-such-model", *words, "--out", str(tmp_path / "x.jsonl")]) == 1
    assert message in capsys.readouterr().err


def test_without_network_the_preset_gives_the_remedy_at_once(monkeypatch, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "*")
    assert main(["eval", "no-such-model", "--preset", "paper", "--out", str(tmp_path / "x.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9 does not answer" in error and "--data with --preset paper" in error


def test_data_that_cannot_be_loaded_is_named_with_the_remedy():
    class Manager:
        def load(self, tasks):
            raise ConnectionError("gated\nand more")

    with pytest.raises(DataError, match=r"lm-eval task gpqa: its data could not be loaded \(gated\). Do that"):
        harness.load_tasks(Manager(), ["gpqa"], "Do that")


def test_lm_eval_generates_through_a_composed_model_with_its_cache(zoo, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tiny = zoo["llama"]
    model, tokenizer = (
        radargate.compose(str(tiny["base"]), tiny["adapters"], gate="radar").eval(),
        load_tokenizer(str(tiny["base"])),
    )
    prompts = [f"say {'it ' * i}" for i in range(1, 4)]
    prompts = [prompt.strip() for prompt in prompts]
    # what the model says itself, without lm-eval, padding or batches; a raw context has no delimiter after it
    answers = [generate(model, tokenizer, [p], max_new_tokens=6, use_cache=False)[0] for p in prompts]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": p, "a": a}) + "\n" for p, a in zip(prompts, answers, strict=True)))
    task = ConfigurableTask(
        config={
            "task": "say",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{q}}",
            "doc_to_target": "a",
            "generation_kwargs": {"until": ["\n\n\n"], "do_sample": False},
            "filter_list": [
                {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    seen: list[bool] = []
    original = model.generate

    def watched(*args, **kwargs):
        seen.append(kwargs.get("use_cache") is True)
        return original(*args, **kwargs)

    monkeypatch.setattr(model, "generate", watched)
    results = harness.evaluate_tasks(model, tokenizer, [task], max_new_tokens=6, batch_size=2)
    assert seen and all(seen)
    assert results["say"]["exact_match,none"] == 1.0, results


def test_several_adapters_share_one_base_that_is_loaded_once(zoo, tasks, tmp_path, monkeypatch):
    tiny, loads = zoo["llama"], []
    original = run.load_base
    monkeypatch.setattr(run, "load_base", lambda *args, **kwargs: loads.append(args) or original(*args, **kwargs))
    adapters = {name: str(path) for name, path in tiny["adapters"].items()}
    options = {
        "data": str(tasks),
        "tasks": ["even"],
        "lm_eval_tasks": None,
        "scoring": Scoring(limit=4),
        "device": "cpu",
    }
    together = run.evaluate(str(tiny["base"]), adapters, tmp_path / "all.jsonl", **options)
    assert len(loads) == 1
    for name, path in adapters.items():
        alone = run.evaluate(str(tiny["base"]), {name: path}, tmp_path / "one.jsonl", **options)
        assert [r["rows"] for r in alone if "rows" in r] == [
            r["rows"] for r in together if r["system"] == name and "rows" in r
        ]
