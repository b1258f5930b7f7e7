"""Full disks, read-only folders and cut-off files: one clear line, exit code 1, and nothing half-written is used later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fresh
import radargate
from radargate.cli import main
from radargate.errors import BundleError, RadarGateError, StorageError
from radargate.io.disk import FULL, write_fault
from radargate.io.records import append_records, read_records, write_atomic

TRAIN = ["--steps", "6", "--batch-size", "4", "--max-length", "64", "--device", "cpu", "--save-every"]


def train_words(zoo, tasks, out, *more: str, save_every: int = 2) -> list[str]:
    tiny = zoo["llama"]
    adapters = [f"{name}={path}" for name, path in tiny["adapters"].items()]
    return [
        "train",
        str(tiny["base"]),
        *adapters,
        "--data",
        str(tasks),
        "--gate",
        "radar",
        "--out",
        str(out),
        *TRAIN,
        str(save_every),
        *more,
    ]


def complaint(capsys) -> str:
    """The one error line a command has printed."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("radargate: error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def gates(bundle: Path) -> dict[str, torch.Tensor]:
    return load_file(bundle / "adapter_model.safetensors")


def test_training_on_a_full_disk_says_so_and_goes_on_bit_equal_once_there_is_room(zoo, tasks, tmp_path, disk, capsys):
    assert main(train_words(zoo, tasks, tmp_path / "whole")) == 0
    reached = set()  # where the room ran out: before the first step, at the first and third checkpoint, at the bundle
    for free, save_every in ((0, 2), (20_000, 2), (110_000, 2), (85_000, 9)):
        out = disk.folder / f"out{free}"
        disk.leave(free)
        capsys.readouterr()
        assert main(train_words(zoo, tasks, out, save_every=save_every)) == 1
        line = complaint(capsys)
        assert str(out) in line and "the disk is full" in line and "Free some space" in line and "--out" in line
        reached.add(line.split("error: ")[1].split(" could")[0])
        assert not (out / "adapter_config.json").exists(), "no bundle that could be taken for a whole one"
        assert not list(out.rglob("*.tmp")), "the unfinished part gives its room back"
        if out.exists():
            with pytest.raises(BundleError, match="no adapter_config"):
                radargate.load(str(zoo["llama"]["base"]), out)
        disk.filler.unlink()
        assert main(train_words(zoo, tasks, out, "--resume", save_every=save_every)) == 0
        whole, late = gates(tmp_path / "whole"), gates(out)
        assert all(torch.equal(whole[name], late[name]) for name in whole)
        assert len(read_records(out / "records.jsonl")) == 1
        shutil.rmtree(out)
    assert reached == {"the run", "checkpoints and metrics", "the bundle"}


def test_every_command_that_writes_ends_in_one_line_on_a_full_or_read_only_disk(zoo, tasks, disk, capsys):
    tiny, out = zoo["llama"], disk.folder / "out"
    data = ["--data", str(tasks), "--device", "cpu"]
    commands = {
        "train": train_words(zoo, tasks, out),
        "experts": [
            "experts",
            str(tiny["base"]),
            *data,
            "--steps",
            "1",
            "--target-modules",
            "q_proj",
            "--out",
            str(out),
        ],
        "eval": [
            "eval",
            str(tiny["base"]),
            *data,
            "--limit",
            "1",
            "--max-new-tokens",
            "1",
            "--out",
            str(out / "s.jsonl"),
        ],
        "quickstart": ["quickstart", "--out", str(out), "--device", "cpu"],
    }
    disk.leave(0)
    for name in ("train", "experts", "eval"):  # the quickstart writes through these
        capsys.readouterr()
        shutil.rmtree(out, ignore_errors=True)
        assert main(commands[name]) == 1, name
        assert f"{out}" in (line := complaint(capsys)) and "the disk is full (0 MB free)" in line, name
        assert not list(disk.folder.rglob("adapter_config.json"))
        assert not any(file.stat().st_size for file in out.rglob("*.jsonl")), "no part of a record"
    disk.remount("ro")
    for name, words in commands.items():
        capsys.readouterr()
        assert main(words) == 1, name
        assert "read-only" in (line := complaint(capsys)) and str(out) in line and "hoose another --out" in line, name


LIMITED = """
import resource, sys, torch
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from radargate.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_where_a_file_may_not_grow_training_says_so_and_goes_on_later(zoo, tasks, tmp_path):
    """The same without root: the system refuses every file over 20 kB, as it would on a spent quota."""
    out = tmp_path / "out"
    result = fresh.run("-c", LIMITED, "20000", *train_words(zoo, tasks, out))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("radargate: error: checkpoints and metrics could not be written to") and "ulimit -f" in last
    assert not list(out.rglob("*.safetensors")) and not (out / "adapter_config.json").exists()
    assert main(train_words(zoo, tasks, out, "--resume")) == 0
    assert radargate.load(str(zoo["llama"]["base"]), out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_or_the_records_is_reported(zoo, tasks):
    base = str(zoo["llama"]["base"])
    with open("/dev/full", "w") as full:  # a process that ends in Python's own way, which writes what is left
        result = subprocess.run(
            [sys.executable, "-m", "radargate.cli", "generate", base, "--prompt", "x", "--max-new-tokens", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 1 and "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert "radargate: error: the output: the disk is full" in result.stderr
    result = fresh.run(
        "-m",
        "radargate.cli",
        "eval",
        base,
        "--data",
        tasks,
        "--limit",
        "1",
        "--max-new-tokens",
        "1",
        "--out",
        "/dev/full",
    )
    assert result.returncode == 1
    assert "the records could not be written to /dev/full: the disk is full" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("out", "message"),
    [("file/scores.jsonl", "a file stands where a folder is needed"), ("folder", "a folder stands where a file")],
)
def test_a_wrong_kind_of_out_is_refused_before_anything_is_scored(zoo, tasks, tmp_path, capsys, out, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert main(["eval", str(zoo["llama"]["base"]), "--data", str(tasks), "--out", str(tmp_path / out)]) == 1
    assert message in complaint(capsys)


RECORDS = [{"schema": 1, "case": "one"}, {"schema": 1, "case": "two\u2028 and \u0085 on"}]


def test_a_record_that_was_cut_off_counts_as_never_written(tmp_path):
    file = tmp_path / "records.jsonl"
    append_records(file, RECORDS)
    whole = file.read_bytes()
    assert read_records(file) == RECORDS, "only a newline ends a record, not every separator of Unicode"
    for cut in range(1, len(whole) - len(whole.splitlines(True)[0])):  # anywhere inside the last line
        file.write_bytes(whole[:-cut])
        # without its newline alone, a record is whole
        assert read_records(file) == (RECORDS if cut == 1 else RECORDS[:1])
        append_records(file, RECORDS[1:])
        assert read_records(file) == (RECORDS + RECORDS[1:] if cut == 1 else RECORDS)
    file.write_bytes(whole[:10])
    assert read_records(file) == []
    append_records(file, RECORDS)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("line", [b'{"schema": 1, "ca', b"7", b"\xff"])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path, line):
    file = tmp_path / "records.jsonl"
    append_records(file, RECORDS)
    first, second = file.read_bytes().split(b"\n")[:2]
    file.write_bytes(b"\n".join((first, line, second, b"")))
    with pytest.raises(RadarGateError, match=r"records\.jsonl, line 2: not a JSON record"):
        read_records(file)


def test_records_are_appended_whole_or_not_at_all(disk):
    file = disk.folder / "records.jsonl"
    append_records(file, RECORDS)
    before = file.read_bytes()
    disk.leave(8192)
    with pytest.raises(StorageError, match=r"the records could not be written to .*: the disk is full"):
        append_records(file, [{"case": i, "text": "x" * 5000} for i in range(10)])
    assert file.read_bytes() == before
    with pytest.raises(OSError):
        write_atomic(file, "x" * 20_000)
    assert file.read_bytes() == before and sorted(os.listdir(disk.folder)) == ["filler", "records.jsonl"]


def test_saving_over_a_bundle_on_a_full_disk_leaves_the_old_one_or_none_that_loads(zoo, disk):
    base, bundle, adapters = str(zoo["llama"]["base"]), disk.folder / "bundle", zoo["llama"]["adapters"]
    old = radargate.compose(base, {"math": adapters["math"]}, top_k=1)
    new = radargate.compose(base, adapters)
    ends = set()
    for free in (0, 20_480, 24_576, 28_672, 32_768, 36_864):
        shutil.rmtree(bundle, ignore_errors=True)
        disk.filler.unlink(missing_ok=True)
        old.save_pretrained(str(bundle), save_embedding_layers=False)
        disk.leave(free)
        try:
            new.save_pretrained(str(bundle), save_embedding_layers=False)
            ends.add("saved")
        except Exception as error:
            assert write_fault(error) == FULL
        try:
            found = radargate.load(base, bundle)
        except BundleError as error:
            assert "differs from its lock file" in str(error)
            ends.add("refused")
            continue
        ids = torch.arange(5, 15)[None]
        expected = old if list(found.peft_config["default"].experts) == ["math"] else new
        ends.add("old" if expected is old else "new")
        with torch.no_grad():
            assert torch.equal(found.eval()(input_ids=ids).logits, expected.eval()(input_ids=ids).logits)
    assert ends == {"old", "refused", "new", "saved"}
