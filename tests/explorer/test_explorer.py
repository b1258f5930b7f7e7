"""The explorer's page: one file, the trace's own numbers in it, safe with any text, drawn by a real browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess

import pytest
import torch

import radargate
from conftest import HANG, tiny_tokenizer
from radargate.cli import main
from radargate.errors import OptionError
from radargate.explorer.files import SiteTrace, Trace, write_facts, write_site
from radargate.explorer.page import explorer, layer_of, packed, payload
from test_tracing import ANSWER, PROMPT, compose

pytest.importorskip("plotly")
HOSTILE = [
    "</script>",
    "<img src=x onerror=alert(1)>",
    '"',
    "'",
    "🙂",
    "\x00\x07\x1b",
    "\u202e",
    "\u2028",
    "%%DATA%%",
    "&lt;",
    "\ud83d",
    "\n",
    "",
]
CHARTS = {
    "layers": ("weights-prompt", "weights-answer"),
    "norms": ("norms",),
    "effect": ("effect",),
    "rotation": ("map", "polar", "angles-before", "angles-after"),
    "collapse": ("entropy", "in-use", "load"),
}


@pytest.fixture
def trace(zoo, load_tiny):
    return radargate.trace(compose(zoo, load_tiny()), PROMPT, answer=ANSWER, tokenizer=tiny_tokenizer())


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def unpacked(found):
    """What `packed` packed, flat."""
    raw = bytearray(base64.b64decode(found["data"]))
    if not raw:
        return torch.zeros(0, dtype=torch.float64)
    return torch.frombuffer(raw, dtype=torch.int16 if found["bits"] == 16 else torch.int8).double() * found["step"]


def made(folder, tokens, experts, sites, k=2, dense=False):
    """A trace of random numbers on disk."""
    folder.mkdir()
    g, n, length = torch.Generator().manual_seed(0), len(experts), len(tokens)
    for name in sites:
        chosen = torch.arange(n).expand(length, n) if dense else torch.rand(length, n, generator=g).topk(k, -1).indices
        weights = torch.rand(chosen.shape, generator=g).softmax(-1)
        unit = torch.nn.functional.normalize(torch.randn(n, 64, generator=g), dim=-1)
        norms = torch.rand(length, n, generator=g)
        write_site(
            folder,
            SiteTrace(
                name,
                tuple(experts),
                chosen.to(torch.int16),
                weights,
                torch.rand(chosen.shape, generator=g),
                torch.rand(chosen.shape, generator=g),
                norms,
                weights * norms.gather(1, chosen),
                torch.rand(length, generator=g),
                9 + torch.rand(length, generator=g),
                unit @ unit.T,
                unit @ unit.T,
                torch.randn(n, 2, generator=g),
                torch.randn(n, 2, generator=g),
            ),
        )
    write_facts(
        folder,
        {
            "tokens": tokens,
            "prompt_length": len(tokens) // 2,
            "experts": experts,
            "sites": dict.fromkeys(sites, experts),
            "nll": [1.0] * (length - 1),
            "without": {name: [1.5] * (length - 1) for name in experts},
            "gate": "radar",
            "architecture": "mole",
            "top_k": k,
            "base": "a/base",
            "encoder_tokens": [],
            "on_encoder": [],
        },
    )
    return Trace(folder)


def test_the_numbers_in_the_page_are_those_of_the_trace(trace):
    data = embedded(explorer([trace], ["mine"]))["traces"][0]
    assert data["name"] == "mine" and data["tokens"] == trace.tokens and data["prompt"] == trace.prompt_length
    assert data["effect"] == pytest.approx(trace.effect(), abs=1e-6) and data["nll"] == pytest.approx(
        trace.nll, abs=1e-4
    )
    assert [one["name"] for one in data["sites"]] == trace.site_names
    for one in data["sites"]:
        site = trace.site(one["name"])
        assert [data["experts"][i] for i in one["experts"]] == list(site.experts)
        shape = site.weights.shape
        torch.testing.assert_close(unpacked(one["weights"]).view(shape).float(), site.weights, rtol=0, atol=1e-4)
        raw = base64.b64decode(one["indices"])
        indices = torch.tensor(list(raw)).view(shape) if raw else torch.arange(shape[1]).expand(shape)
        assert torch.equal(indices, site.indices.long())
        if one["angles"]:
            torch.testing.assert_close(unpacked(one["angles"]).float(), site.angles.mean(-1), rtol=0, atol=1e-3)
        added = torch.zeros(site.expert_norms.shape).scatter(1, site.indices.long(), site.contributions)
        cut = trace.prompt_length
        for part, tokens in ((0, slice(None, cut)), (1, slice(cut, None))):
            assert one["norms"][0][part] == pytest.approx(added[tokens].mean(0).tolist(), rel=1e-4)
            assert one["norms"][1][part] == pytest.approx([float(site.base[tokens].mean())], rel=1e-4)
        if len(site.experts) > 1:
            wanted = torch.rad2deg(site.cosine_after.double().clamp(-1, 1).arccos()).fill_diagonal_(0)
            torch.testing.assert_close(unpacked(one["pairs"][1]).view(wanted.shape), wanted, rtol=0, atol=0.01)
            torch.testing.assert_close(torch.tensor(one["maps"][0]), site.map_before, rtol=1e-4, atol=1e-6)


def test_a_page_loads_nothing_and_no_text_breaks_out_of_it(tmp_path):
    trace = made(tmp_path / "trace", HOSTILE, ["</script><b>", 'a"b'], ["model.layers.0.q"])
    page = explorer([trace], ["<i>&"], title="</title><script>")
    data = embedded(page)
    assert data["traces"][0]["tokens"] == HOSTILE and data["traces"][0]["experts"][0] == "</script><b>"
    assert html.escape("</title><script>") in page and "<title></title>" not in page
    assert page.count("<script") - page.count('"<script') >= 3 and "default-src 'none'" in page
    ours = page[: page.index('<script type="application/json"')]
    assert (
        not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#|["'])\S""", ours)
        and "@import" not in ours
        and "url(" not in ours
    )
    page.encode("utf-8")


@pytest.mark.parametrize(
    ("site", "layer"),
    [
        ("model.layers.12.self_attn.q_proj", "12"),
        ("encoder.block.3.layer.0.SelfAttention.q", "encoder 3"),
        ("lm_head", "other"),
    ],
)
def test_the_layer_of_a_site(site, layer):
    assert layer_of(site) == layer


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [-1.5, 0.25, 3e4], [float("nan"), 1.0]])
def test_packed_numbers_come_back(values):
    wanted = torch.nan_to_num(torch.tensor(values, dtype=torch.float64))
    largest = float(wanted.abs().max()) if values else 0.0
    for bits in (8, 16):
        torch.testing.assert_close(unpacked(packed(wanted, bits)), wanted, rtol=0, atol=largest / (1 << (bits - 1)))


def test_two_thousand_tokens_at_210_sites_of_40_experts_stay_below_25_megabytes(tmp_path):
    sites = [f"model.layers.{i // 7}.self_attn.m{i % 7}" for i in range(210)]
    trace = made(tmp_path / "large", [f" word{i}" for i in range(2000)], [f"expert{i}" for i in range(40)], sites)
    assert len(explorer([trace])) < 25e6


def test_very_many_weights_take_one_byte_each(tmp_path, monkeypatch):
    trace = made(tmp_path / "dense", list("abcdef"), list("xyz"), ["layers.0.q"], k=3, dense=True)
    assert payload(trace)["sites"][0]["weights"]["bits"] == 16 and payload(trace)["sites"][0]["indices"] == ""
    monkeypatch.setattr("radargate.explorer.page.MANY", 5)
    found = payload(trace)["sites"][0]["weights"]
    assert found["bits"] == 8
    weights = trace.site("layers.0.q").weights
    torch.testing.assert_close(unpacked(found).view(weights.shape).float(), weights, rtol=0, atol=0.005)


def test_no_trace_and_three_are_refused(trace):
    for traces in ([], [trace] * 3):
        with pytest.raises(OptionError, match="expected one, or two"):
            explorer(traces)


def test_the_command_writes_a_page_of_two_bundles(zoo, load_tiny, tmp_path, capsys):
    for name, gate in (("one", "radar"), ("two", "stretch")):
        compose(zoo, load_tiny(), gate=gate).save_pretrained(tmp_path / name)
    out = tmp_path / "new" / "page.html"
    words = [
        "explore",
        str(tmp_path / "one"),
        "--base",
        str(zoo["llama"]["base"]),
        "--prompt",
        PROMPT,
        "--device",
        "cpu",
    ]
    assert main([*words, "--compare", str(tmp_path / "two"), "--answer", ANSWER, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    first, second = embedded(out.read_text())["traces"]
    assert first["tokens"] == second["tokens"] and (first["name"], second["name"]) == ("one", "two")
    assert any(site["angles"] for site in first["sites"]) and not any(site["angles"] for site in second["sites"])
    assert main([*words, "--out", str(tmp_path)]) == 1
    assert "is a folder, expected a file" in capsys.readouterr().err


def drawn(folder, page, place=""):
    """What a browser makes of a page, and what it logs."""
    (folder / "page.html").write_text(page)
    found = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            "--dump-dom",
            f"file://{folder / 'page.html'}{place}",
        ],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    return found.stdout, found.stderr


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_an_expert_has_one_colour_wherever_it_stands_in_a_trace(tmp_path):
    traces = [
        made(tmp_path / name, list("abcd"), experts, ["model.layers.0.q"])
        for name, experts in (("one", ["math", "law"]), ("two", ["law", "code", "math"]))
    ]
    document, _ = drawn(tmp_path, explorer(traces, ["one", "two"]))
    legend = dict(re.findall(r'<li><span class="swatch"[^>]*--c: ?(#\w+)[^>]*>A</span>(\w+)</li>', document))
    bars = re.findall(r'<span>(\w+)</span><span class="bar"[^>]*--c: ?(#\w+)', document)
    assert set(legend.values()) == {"math", "law", "code"} and len(legend) == 3
    assert len(bars) == 5 and all(legend[colour] == expert for expert, colour in bars)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_a_browser_draws_every_chart_without_an_error(tmp_path):
    trace = made(
        tmp_path / "trace",
        [*HOSTILE, *"more text"],
        ["math", "</script><b>", "code"],
        ["model.layers.0.q", "model.layers.1.v"],
    )
    document, said = drawn(tmp_path, explorer([trace, trace], ["one", "two"]), "#token-3")
    assert "CONSOLE" not in said, [line for line in said.splitlines() if "CONSOLE" in line]
    assert 'data-drawn="yes"' in document
    charts = dict(re.findall(r'<figure id="([\w-]+)">(.*?)</figure>', document, re.S))
    for section, names in CHARTS.items():
        for name in names:
            for place in (0, 1):
                assert "main-svg" in charts[f"{section}-{place}-{name}"], name
    assert re.search(r'id="token-3"[^>]*aria-selected="true"', document)
    assert "<img src=x" not in document.split("</script>")[-1]
