"""The hostile corpus: each file is refused as listed, in time, in little memory, on one line, and nothing of it runs."""

from __future__ import annotations

import json
import re
import signal
import tracemalloc
from pathlib import Path

import pytest

import fresh
import hostile_corpus
import radargate
from conftest import HANG
from hostile_cases import ACCEPTED, CASES, REFUSED
from radargate.cli import main
from radargate.errors import BundleError, DataError, RadarGateError
from radargate.experts.doctor import examine
from radargate.io.records import read_records

MEGABYTES = 200


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The config of a base that the sound adapters fit."""
    return str(hostile_corpus.write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(autouse=True)
def in_time():
    """Kills a test that hangs."""

    def over(*_):
        raise TimeoutError(f"no answer within {HANG} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(HANG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*")}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_each_case_is_refused_as_listed(case, base, tmp_path):
    place = hostile_corpus.write_good(tmp_path / "in" / "adapter")
    mark = tmp_path / "in" / "executed"
    given = case.build(place, mark) or place
    before = files(tmp_path)
    if case.bomb:
        tracemalloc.start()
    try:
        problem = examine(base, {"theirs": given}, probe=False)[0].problem
        peak = tracemalloc.get_traced_memory()[1] if case.bomb else 0
    finally:
        tracemalloc.stop()
    assert re.search(case.reason, problem), problem
    assert peak < MEGABYTES << 20, f"{peak >> 20} MB"
    assert problem.isprintable() and len(problem) < 800, "one line that no terminal obeys"
    assert any(
        name in problem for name in ("adapter_config.json", "adapter_model", str(given), "'theirs'", "the base")
    ), problem
    assert re.search(r"\. [A-Z]|; (choose|download|leave|train)", problem), f"no remedy: {problem}"
    assert not mark.exists(), "something in the file was executed"
    assert files(tmp_path) == before, "something was written"


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_sound_files_near_to_hostile_ones_are_accepted(case, base, tmp_path):
    place = hostile_corpus.write_good(tmp_path / "in" / "adapter")
    given = case.build(place, tmp_path / "executed") or place
    found = examine(base, {"theirs": given}, probe=False)[0]
    assert found.ok, found.problem


def test_the_doctor_prints_a_table_of_the_whole_corpus(base, tmp_path, capsys):
    signal.alarm(HANG)  # for all cases together
    words = ["doctor", base, "--no-probe"]
    for number, case in enumerate(CASES):
        if not case.bomb:
            place = hostile_corpus.write_good(tmp_path / f"{number}" / "adapter")
            words.append(f"{case.name}={case.build(place, tmp_path / 'executed') or place}")
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert f"{len(ACCEPTED)} of {len(words) - 3} adapters can be used." in out and "Traceback" not in out + err
    for case in CASES:
        if not case.bomb:
            line = next(line for line in out.splitlines() if line.startswith(case.name + " "))
            assert ("BAD" in line) == (case.reason is not None)


@pytest.mark.whole
def test_the_corpus_is_written_and_recorded_by_one_command(tmp_path):
    signal.alarm(HANG)  # for all cases together
    script = Path(hostile_corpus.__file__)
    result = fresh.run(script, "--out", tmp_path / "corpus", "--record", tmp_path / "r.jsonl")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    record = read_records(tmp_path / "r.jsonl")[0]
    assert record["metrics"]["cases"] == record["metrics"]["as_expected"] == len(CASES) > 100
    assert str(tmp_path) not in json.dumps(record["rows"])


@pytest.fixture
def bundle(zoo, tmp_path):
    radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"]).save_pretrained(tmp_path / "bundle")
    return tmp_path / "bundle"


def edited(folder: Path, name: str, change) -> Path:
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


def first_site(config: dict) -> dict:
    return next(iter(config["sites"].values()))


CONFIG, LOCK = "adapter_config.json", "radargate.lock.json"
BUNDLES = {
    "wide site": (
        lambda b: edited(b, CONFIG, lambda c: first_site(c).update(shape=[1 << 30, 1 << 30])),
        "experts of shape",
    ),
    "rank of 10^9": (lambda b: edited(b, CONFIG, lambda c: first_site(c).update(ranks=[10**9] * 3)), "ranks = "),
    "expert that is not there": (
        lambda b: edited(b, CONFIG, lambda c: first_site(c).update(experts=[0, 1, 7])),
        "experts = ",
    ),
    "scale NaN": (lambda b: edited(b, CONFIG, lambda c: first_site(c).update(scales=[float("nan")] * 3)), "scales = "),
    "sites a list": (lambda b: edited(b, CONFIG, lambda c: c.update(sites=[])), "sites = "),
    "experts a text": (lambda b: edited(b, CONFIG, lambda c: c.update(experts="ab")), "experts = "),
    "option of another kind": (
        lambda b: edited(b, CONFIG, lambda c: c.update(gate_options={"temperature": "hot"})),
        "expected a number above 0",
    ),
    "gate a list": (lambda b: edited(b, CONFIG, lambda c: c.update(gate=["radar"])), "gate = "),
    "task type unknown": (lambda b: edited(b, CONFIG, lambda c: c.update(task_type="EVIL")), "cannot be read"),
    "another PEFT type": (
        lambda b: edited(b, CONFIG, lambda c: c.update(peft_type="LORA")),
        "LORA adapter, not a RadarGate bundle",
    ),
    "unknown PEFT type": (
        lambda b: edited(b, CONFIG, lambda c: c.update(peft_type="EVIL")),
        "EVIL adapter, not a RadarGate bundle",
    ),
    "no experts": (lambda b: edited(b, CONFIG, lambda c: c.update(experts=[])), "names no experts"),
    "only a pickle": (lambda b: (b / "adapter_model.safetensors").rename(b / "adapter_model.bin"), "pickled file"),
    "lock lists a way up": (
        lambda b: edited(b, LOCK, lambda c: c["files"].update({"../../secret": "0"})),
        "lists ../../secret",
    ),
    "lock lists an absolute path": (
        lambda b: edited(b, LOCK, lambda c: c["files"].update({"/etc/passwd": "0"})),
        "lists /etc/passwd",
    ),
    "lock changed": (
        lambda b: edited(b, LOCK, lambda c: c["base"].update(name="evil/base")),
        "was changed after it was written",
    ),
    "lock without files": (lambda b: edited(b, LOCK, lambda c: c.pop("files")), "is damaged"),
    "lock deep": (lambda b: (b / LOCK).write_text("[" * 10_000), "not valid JSON"),
    "lock links away": (
        lambda b: (b / LOCK).rename(b.parent / "l") and (b / LOCK).symlink_to(b.parent / "l"),
        "symbolic link out",
    ),
    "weights link away": (
        lambda b: (
            (b / "adapter_model.safetensors").rename(b.parent / "w")
            and (b / "adapter_model.safetensors").symlink_to(b.parent / "w")
        ),
        "symbolic link out",
    ),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_hostile_bundles_are_refused_before_memory_is_taken(case, bundle, zoo):
    change, reason = BUNDLES[case]
    change(bundle)
    if not reason.startswith(("lists", "was changed", "is damaged", "not valid", "symbolic")):
        (bundle / LOCK).unlink()  # whoever changes a config can leave its lock file out
    with pytest.raises(RadarGateError) as error:
        radargate.load(str(zoo["llama"]["base"]), bundle)
    assert isinstance(error.value, (BundleError, RadarGateError)) and reason in str(error.value), str(error.value)


@pytest.mark.parametrize("task", ["../evil", "/tmp/evil", "a/b", ".hidden", "", " ", "a\nb", "\x1b[2J", "x" * 200])
def test_a_tasks_name_cannot_lead_out_of_the_folder(task, zoo, tmp_path, capsys):
    rows = "".join(json.dumps({"prompt": f"{i}", "target": "a", "task": task or None}) + "\n" for i in range(4))
    (tmp_path / "data.jsonl").write_text(rows)
    words = [
        "experts",
        str(zoo["llama"]["base"]),
        "--data",
        str(tmp_path / "data.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "1",
        "--rank",
        "1",
        "--target-modules",
        "q_proj",
        "--device",
        "cpu",
    ]
    before = files(tmp_path)
    code = main(words)
    if task:
        assert code == 1 and "cannot be the name" in capsys.readouterr().err and files(tmp_path) == before
    else:
        assert code == 0 and (tmp_path / "out" / "data" / CONFIG).exists()


def test_rows_that_unfold_without_end_are_refused(tmp_path):
    import gzip

    from radargate.data.sources import load_rows

    for name, content, reason in (
        ("line.jsonl.gz", b" " * (40 << 20), "a line of more than"),
        ("lines.jsonl.gz", (b" " * 1000 + b"\n") * (160 << 10), "unfolds to more than"),
        ("text.jsonl", b'{"prompt": "\\ud800", "target": "a"}\n', "half a surrogate"),
        ("digits.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", "not valid JSON|field 'prompt'"),
    ):
        file = tmp_path / name
        file.write_bytes(gzip.compress(content, 9) if name.endswith(".gz") else content)
        with pytest.raises(DataError, match=reason):
            load_rows(file, "test")
