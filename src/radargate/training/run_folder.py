"""The folder of one training of gates: claimed for a run, read by the run that goes on, filled at the end, tidied."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import base_dtype
from radargate.composition.verify import lock_base
from radargate.errors import RadarGateError
from radargate.io.disk import flush, writing
from radargate.io.places import public_name
from radargate.io.processes import is_main_process
from radargate.io.records import append_records, file_hash, make_record, read_records, write_atomic
from radargate.training import processes
from radargate.training.options import AUTO, GateTraining

logger = logging.getLogger(__name__)

WORK = ".bundle.tmp"  # where a bundle is put together, in its own folder
# a config says that the bundle is whole, a record that the run is finished: they come last
LAST = ("adapter_config.json", "record.json")


class RunFolder:
    """``run.json`` (what was asked for), ``checkpoints`` until the end, then the bundle and ``record.json``.

    Args:
        path: the folder; it need not be there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether a run has ended here."""
        return (self.path / "record.json").exists()

    def claim(self, run: dict[str, Any], resume: bool) -> bool:
        """Take the folder for this run; True where the same run is finished here already. The main process takes it.

        Raises:
            RadarGateError: something else is here, or this run and ``resume`` is off.
        """
        if not is_main_process():
            return resume and self.finished
        run = json.loads(json.dumps(run))
        if (self.path / "run.json").exists():
            self._check_same(run, resume)
            if self.finished:
                self.tidy()
                logger.info(f"{self.path} is finished already.")
                return True
        elif (self.path / "adapter_config.json").exists():
            raise RadarGateError(f"{self.path} already holds an adapter or bundle; choose another `out`.")
        with writing("the run", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "run.json", json.dumps(run, indent=2))
        return False

    def _check_same(self, run: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise RadarGateError(
                f"{self.path} already holds a run. Use `resume` to continue it, or choose another `out`."
            )
        before = self.read("run.json")
        for key in run:
            if run[key] != before.get(key):
                raise RadarGateError(
                    f"`resume`: the run in {self.path} had another {key} ({json.dumps(before.get(key))[:200]}). Repeat its "
                    "options, data and adapters, or choose another `out`."
                )

    def read(self, name: str = "record.json") -> dict[str, Any]:
        """A JSON object that an earlier run left here.

        Raises:
            RadarGateError: it is damaged.
        """
        file = self.path / name
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError(f"found {type(found).__name__}, expected an object")
        except (OSError, ValueError, RecursionError) as error:
            raise RadarGateError(
                f"{file} is damaged ({error}). Delete it to begin again with `resume`, or choose another `out`."
            ) from error
        return found

    def begun(self, options: GateTraining) -> GateTraining:
        """Options of a run here; where the gate is left to us, one that goes on keeps the gate that it began with."""
        if options.gate == AUTO and (self.path / "run.json").exists():
            before = self.read("run.json").get("options", {})
            kept = {key: before[key] for key in ("gate", "gate_options") if key in before}
            options = dataclasses.replace(options, **kept)
        return options.resolved()

    def dtype(self, base: str, asked: str | None, device: str | None) -> str | None:
        """The base's dtype for a run here: one that goes on keeps what it began with, on any machine.

        Returns:
            None where the run was begun by a version that kept the checkpoint's own and wrote nothing down.
        """
        if asked in (None, CHECKPOINT) and (self.path / "run.json").exists():
            begun = self.read("run.json").get("dtype")
            logger.info("dtype: %s, as this run began.", begun or "the checkpoint's own")
            return begun
        return processes.agreed(base_dtype(base, asked, device).name, device)

    def save(self, model: PeftModel, metrics: dict[str, Any], facts: dict[str, Any]) -> None:
        """Put bundle, metrics and record in place; what needs room is written first, then renamed."""
        work, curve = self.path / WORK, self.checkpoints / "metrics.jsonl"
        shutil.rmtree(work, ignore_errors=True)
        try:
            model.save_pretrained(str(work), save_embedding_layers=False)
            lock_base(work, facts["base"])
            facts = {
                **facts,
                "base": public_name(facts["base"]),
                "gate_sha256": file_hash(work / "adapter_model.safetensors"),
            }
            record = make_record("train", facts["options"]["gate"], metrics, **facts)
            write_atomic(work / "record.json", json.dumps(record, indent=2))
            if curve.exists():
                shutil.copyfile(curve, work / "metrics.jsonl")
            self.note(record)
            flush(work)
            for file in sorted(work.iterdir(), key=lambda f: LAST.index(f.name) if f.name in LAST else -1):
                file.replace(self.path / file.name)
            flush(self.path)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def note(self, record: dict[str, Any]) -> None:
        """Append a run's record, once: a run that was killed between its record and its bundle has one already."""
        file, key = self.path / "records.jsonl", ("suite", "case", "config_hash")
        if not file.is_file() or all(any(old.get(k) != record[k] for k in key) for old in read_records(file)):
            append_records(file, [record])

    def tidy(self) -> None:
        """Drop what only an unfinished run needs, also where a kill came between its record and this."""
        for folder in (self.path / WORK, *self.checkpoints.glob("checkpoint-*")):
            shutil.rmtree(folder, ignore_errors=True)
