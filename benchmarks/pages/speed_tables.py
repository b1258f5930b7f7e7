"""docs/speed.md, its pictures and the README's two figures, from the records of `radargate bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from radargate.io.records import read_records
from radargate.report import charts
from radargate.report.table import markdown

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed.targets import Figure, figures

SPEED = Path(__file__).parents[1] / "results" / "speed"
AVX2 = SPEED.with_name("speed-avx2")  # the goals' figures on the instructions of an older processor
SUITES = ("ops", "step", "decode", "serve", "footprint")
SYSTEMS = {
    "base": "base alone",
    "lora": "one PEFT LoRA",
    "stretch": "RadarGate stretch",
    "radar": "RadarGate radar",
    "radar, PyTorch alone": "RadarGate radar, no compiler",
    "loramoe": "LoRAMoE (dense, its equations)",
    "arrow": "PEFT Arrow",
    "xlora": "PEFT X-LoRA",
    "literal": "the paper's equations",
}
Record = dict[str, Any]


def records(folder: Path = SPEED) -> list[Record]:
    """All records of a folder, in the order of the suites."""
    found: list[Record] = []
    for name in SUITES:
        path = folder / f"{name}.jsonl"
        found += read_records(path) if path.exists() else []
    return found


def times_lora(suite: str, experts: int = 8) -> str:
    """A radar gate's time as a multiple of one LoRA's, for the README: ``bench-step`` or ``bench-decode``."""
    record = next(r for r in _of(records(), suite) if r["experts"] == experts and r.get("prompts") != 16)
    return _times(record["metrics"]["times_lora"]["radar"])


def page() -> str:
    """docs/speed.md."""
    found = records()
    machine = found[0]["machine"]
    parts = [
        "# Speed",
        "Made by `make pages` from the records in `benchmarks/results/speed/`; `make bench` makes new ones on your machine.",
        f"All figures: {machine['cpu']} ({machine['vectors']}), {found[0]['threads']} threads, float32. Every ratio is the median over rounds in which all systems "
        "take turns; brackets are quartiles over rounds. Before anything is timed its result is checked against float64. "
        "No GPU figure has been measured yet.",
        "## Goals",
        _goals(found, records(AVX2)),
    ]
    for suite, title in (("bench-step", "## A training step"), ("bench-decode", "## Answering, token by token")):
        parts.append(title)
        for record in _of(found, suite):
            parts += [_conditions(record), _systems(record)]
    if served := _of(found, "bench-serve"):
        parts += ["## A server under many requests at once", _served(served)]
    parts += [
        "## One site",
        _ops_text(found),
        "![time against the number of experts](speed-experts.svg)",
        "![time against the number of tokens](speed-tokens.svg)",
        _ops_table(found),
    ]
    parts += ["## One site with its base product", _growth(found)]
    parts += ["## Parameters and arithmetic beside the paper's formulas (Eq. 40-42)", _complexity(found)]
    parts += ["## Loading", _loading(found)]
    return "\n\n".join(parts) + "\n"


def pictures() -> dict[str, str]:
    """Name → SVG."""
    steps = [r for r in _of(records(), "bench-ops") if r["pass"] == "step" and r["width"] == 2048 and r["top_k"] == 2]
    sizes = [r["tokens"] for r in steps if r["tokens"] <= 1024]
    tokens = max(sizes, key=lambda size: (sizes.count(size), size))
    by_experts = sorted((r for r in steps if r["tokens"] == tokens), key=lambda r: r["experts"])
    experts = 8
    by_tokens = sorted((r for r in steps if r["experts"] == experts), key=lambda r: r["tokens"])
    names = {"ours": "RadarGate", "eager": "RadarGate, no compiler", "literal": "paper's equations", "lora": "one LoRA"}

    def lines(chosen: list[Record], x: str) -> dict[str, list[tuple[float, float]]]:
        return {shown: [(r[x], r["metrics"]["seconds"][form] * 1e3) for r in chosen] for form, shown in names.items()}

    return {
        "speed-experts.svg": charts.curves(
            lines(by_experts, "experts"),
            "experts",
            "ms, forward + backward",
            f"Time of one update, width 2048, {tokens} tokens, top-2, against the number of experts",
            logarithmic=True,
        ),
        "speed-tokens.svg": charts.curves(
            lines(by_tokens, "tokens"),
            "tokens",
            "ms, forward + backward",
            f"Time of one update, width 2048, {experts} experts, top-2, against the number of tokens",
            logarithmic=True,
        ),
    }


def _of(found: list[Record], suite: str) -> list[Record]:
    """The newest record of every case of a suite."""
    newest = {r["case"]: r for r in found if r["suite"] == suite}
    return list(newest.values())


def _times(value: dict[str, float] | None) -> str:
    return f"{value['value']:.2f}" if value else ""


def _goals(found: list[Record], older: list[Record]) -> str:
    """Every goal and what was found, on this processor's own instructions and on those of one with AVX2 at most."""
    header, rows = ["figure", "goal", "found"], [[f.text, _bound(f), _found(f)] for f in figures(found)]
    if not older:
        return markdown(header, rows)
    for row, figure in zip(rows, figures(older), strict=True):
        row.append(_found(figure))
    text = "AVX2: the same machine, with PyTorch, its libraries and our compiled code held to AVX2 (`make bench-avx2`)."
    return "\n\n".join([markdown([*header, "found, AVX2"], rows), text])


def _found(figure: Figure) -> str:
    if figure.found is None:
        return "not measured"
    spread = "" if figure.low is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
    return f"{figure.found:.2f}{spread}{'' if figure.met else ' **missed**'}"


def _bound(figure: Figure) -> str:
    return f"{'≥' if figure.at_least else '≤'} {figure.bound:g}×"


def _conditions(record: Record) -> str:
    layers = "all its layers" if record["layers"] is None else f"{record['layers']} layers"
    return (
        f"{record['experts']} adapters; shape of {record['shape']} ({layers}), {record['prompts']} × {record['length']} tokens, "
        f"{record['metrics']['rounds']} rounds."
    )


def _systems(record: Record) -> str:
    m = record["metrics"]
    more, few = "launches" in m, m.get("scaled_from_rows", {})
    header = ["system", "ms", "one LoRA = 1", *(["operations a token"] if more else ["peak MiB", "trained parameters"])]
    rows = []
    for name, shown in SYSTEMS.items():
        if name not in m["seconds"]:
            continue
        ratio = m["times_lora"][name]
        only = " (forward only)" if name in m.get("forward_only", ()) else ""
        only += f" ({few[name]} of {record['prompts']} rows, scaled up)" if name in few else ""
        tail = (
            [f"{m['launches'][name]:.0f}"]
            if more
            else [f"{m['peak_bytes'][name] / 2**20:.0f}", f"{m['trained'][name]:,}"]
        )
        rows.append(
            [
                shown + only,
                f"{m['seconds'][name] * 1e3:.1f}",
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                *tail,
            ]
        )
    return markdown(header, rows)


def _served(found: list[Record]) -> str:
    """Throughput of bundles beside their base's."""
    rows = []
    for r in found:
        speed, ratio = r["metrics"]["tokens_per_second"], r["metrics"]["bundle_over_base"]
        rows.append(
            [
                str(r["experts"]),
                str(r["clients"]),
                f"{speed['bundle']:.1f}",
                f"{speed['base']:.1f}",
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            ]
        )
    one = found[0]
    text = (
        f"`radargate serve` over HTTP on loopback, clients in its process; shape of {one['shape']}, prompts of {one['length']} tokens, greedy "
        f"answers of {one['answered']}; the base is the same radar bundle with every expert switched off by the request; "
        f"{one['metrics']['rounds']} rounds."
    )
    return "\n\n".join(
        [text, markdown(["experts", "requests at once", "tokens a second", "base", "bundle / base"], rows)]
    )


def _ops_text(found: list[Record]) -> str:
    marked = [r for r in _of(found, "bench-ops") if r["literal_on_tokens"] < r["tokens"]]
    text = (
        "The update alone, without the base's product: forward, and forward with backward to the input and the gate. The reference "
        "implementation adds the other experts' outputs one by one, as Eq. 5 prints it; taking their sum less the own one made it 1.3 times "
        "faster at 40 experts."
    )
    return text + (
        " * the reference implementation on as many tokens as fit a set amount of memory, scaled up by tokens: too low rather than too high, as its "
        "time a token grows with them."
        if marked
        else ""
    )


def _ops_table(found: list[Record]) -> str:
    rows = []
    for r in _of(found, "bench-ops"):
        m = r["metrics"]
        mark = "*" if r["literal_on_tokens"] < r["tokens"] else ""
        rows.append(
            [
                str(r["width"]),
                str(r["experts"]),
                str(r["tokens"]),
                str(r["top_k"]),
                r["pass"],
                f"{m['seconds']['ours'] * 1e3:.2f}",
                _times(m["ours_over_lora"]),
                _times(m.get("eager_over_lora")),
                _times(m["literal_over_ours"]) + mark,
                f"{m['peak_bytes']['literal'] / max(m['peak_bytes']['ours'], 1):.1f}{mark}",
            ]
        )
    header = [
        "width",
        "experts",
        "tokens",
        "top-k",
        "pass",
        "ms",
        "ours / one LoRA",
        "PyTorch alone / one LoRA",
        "reference / ours",
        "reference / ours, peak memory",
    ]
    return markdown(header, rows)


def _growth(found: list[Record]) -> str:
    rows = []
    for r in _of(found, "bench-growth"):
        m = r["metrics"]
        numbers = [n for n in m["seconds"] if n != "base"]
        rows.append(
            [
                r["route"],
                f"{m['seconds']['base'] * 1e3:.0f}",
                *(f"{m['seconds'][n] * 1e3:.0f} ({_times(m['over_5'][n])})" for n in numbers),
            ]
        )
    numbers = [n for n in _of(found, "bench-growth")[0]["metrics"]["seconds"] if n != "base"]
    text = f"Forward and backward, width {r['width']}, {r['tokens']} tokens, top-2; ms, and in brackets the ratio to 5 experts."
    return "\n\n".join([text, markdown(["route", "base product", *(f"{n} experts" for n in numbers)], rows)])


def _complexity(found: list[Record]) -> str:
    rows = []
    for r in _of(found, "bench-complexity"):
        m = r["metrics"]
        flop = m["flop_per_token"]
        rows.append(
            [
                r["gate"],
                str(r["experts"]),
                f"{m['parameters']:,}",
                f"{m['parameters_formula']:,}",
                f"{flop['ours'] / 1e6:.2f}",
                f"{flop['literal'] / 1e6:.2f}",
                f"{m['flop_per_token_formula'] / 1e6:.2f}",
                f"{m['peak_bytes']['ours'] / 2**20:.2f}",
                f"{m['peak_bytes']['literal'] / 2**20:.2f}",
            ]
        )
    text = (
        f"One site of width {r['width']}, top-{r['top_k']}, {r['tokens']} tokens. Mflop a token of matrix products as PyTorch counts them in our form "
        "without the compiler and in the reference implementation, beside what the formulas say. The formulas count the chosen adapters only, but "
        "choosing by rotation needs every adapter's code and their sum, so the count grows with their number."
    )
    header = [
        "gate",
        "experts",
        "trained parameters",
        "formula",
        "Mflop ours",
        "reference",
        "formula",
        "peak MiB ours",
        "reference",
    ]
    return "\n\n".join([text, markdown(header, rows)])


def _loading(found: list[Record]) -> str:
    rows = [
        [
            str(r["experts"]),
            f"{r['metrics']['compose_seconds']:.2f}",
            f"{r['metrics']['load_seconds']:.2f}",
            f"{r['metrics']['expert_bytes'] / 2**20:.0f}",
        ]
        for r in _of(found, "bench-load")
    ]
    light = _of(found, "bench-import")[0]["metrics"]["import_seconds"]
    text = f"Composing adapter files and loading a bundle onto a base that is in memory; `import radargate` takes {light * 1e3:.0f} ms."
    return "\n\n".join([text, markdown(["adapters", "compose, s", "load, s", "experts, MiB"], rows)])
