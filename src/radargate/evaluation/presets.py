"""Benchmarks by name: which lm-eval tasks a preset runs, and which local files stand for them where there is no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.errors import DataError, UnknownNameError
from radargate.registry import unknown_name


@dataclass(frozen=True)
class Local:
    """Where a benchmark's own rows lie under the data folder."""

    folder: str
    tasks: tuple[str, ...] | None = None  # None: every task of the folder


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a preset.

    Attributes:
        name: as the paper calls it.
        lm_eval: names of lm-eval tasks.
        metrics: what lm-eval reports that stands for the paper's number.
        local: folders of local rows; the first that is there counts.
    """

    name: str
    lm_eval: tuple[str, ...]
    metrics: tuple[str, ...]
    local: tuple[Local, ...]


@dataclass(frozen=True)
class Preset:
    """A named set of benchmarks with what they share: worked examples in the prompt, and tokens of an answer."""

    benchmarks: tuple[Benchmark, ...]
    num_fewshot: int
    max_new_tokens: int


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(
        benchmarks=(
            Benchmark("GLUE", ("cola", "mnli", "qnli", "qqp", "rte", "sst2", "wnli"), ("acc", "mcc"), (Local("glue"),)),
            Benchmark("MMLU", ("mmlu", "arc_easy", "arc_challenge", "openbookqa", "race"), ("acc",), (Local("mmlu"),)),
            Benchmark(
                "WMT14",
                ("wmt14-en-fr",),
                ("chrf", "bleu"),
                (Local("translation", ("wmt14_en_cs", "wmt14_en_de", "wmt14_en_fr", "wmt14_en_ru")),),
            ),
            Benchmark("GSM8K", ("gsm8k",), ("exact_match",), (Local("math", ("gsm8k",)),)),
            Benchmark("MATH", ("minerva_math500",), ("math_verify",), (Local("math", ("math",)),)),
            Benchmark(
                "GPQA",
                ("gpqa_main_zeroshot",),
                ("acc",),
                (Local("gpqa"), Local("reasoning", ("logiqa_en", "lsat_ar", "lsat_lr"))),
            ),
        ),
        num_fewshot=0,
        max_new_tokens=512,
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name; `UnknownNameError` names the nearest."""
    if name not in PRESETS:
        raise UnknownNameError(unknown_name("preset", name, list(PRESETS)))
    return PRESETS[name]


def local_rows(preset: Preset, data: str | Path, split: str, limit: int | None) -> dict[str, dict[str, list[Row]]]:
    """benchmark → task → rows, from a folder of folders of ``TASK.SPLIT.jsonl[.gz]`` files.

    Raises:
        DataError: a benchmark's folder, split or task is not there.
    """
    root = Path(data)
    wanted = list(dict.fromkeys(local.folder for benchmark in preset.benchmarks for local in benchmark.local[-1:]))
    if not root.is_dir():
        raise DataError(
            f"`data` {data}: no such folder. A preset expects a folder that holds the folders {', '.join(wanted)}."
        )
    found: dict[str, dict[str, list[Row]]] = {}
    for benchmark in preset.benchmarks:
        local = next((place for place in benchmark.local if (root / place.folder).is_dir()), None)
        if local is None:
            present = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "no folder"
            places = " or ".join(place.folder for place in benchmark.local)
            raise DataError(
                f"`data` {data}: no folder {places} for {benchmark.name}. Found: {present}; expected: {', '.join(wanted)}."
            )
        tasks = list(local.tasks) if local.tasks else None
        found[benchmark.name] = load_rows(root / local.folder, split, tasks, limit)
    return found
