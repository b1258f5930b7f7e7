"""The base without its chat template, and the atomic experts: trained or given, and good enough or said."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radargate.base_models.cache import PACKAGED_MODELS
from radargate.base_models.loading import resolve_base
from radargate.composition.composing import compose
from radargate.data.builtin.skills import Pair, skill_rows
from radargate.errors import AdapterError, RadarGateError
from radargate.evaluation.options import Scoring
from radargate.evaluation.run import score_system
from radargate.experts.adapters import read_adapter
from radargate.io.cache import cache_folder
from radargate.io.disk import writing
from radargate.io.records import append_records, content_hash, read_records
from radargate.paper.points import base_identity, slug
from radargate.paper.skills.design import BAR, SkillsDesign
from radargate.training.experts import train_experts

CHECKED = "atom"  # suite of an expert's records on its own rows
TEMPLATE, CONFIG = "chat_template", "tokenizer_config.json"
logger = logging.getLogger(__name__)


def plain_base(name: str) -> str:
    """A folder with the same base and no chat template, whose system text would be most of these short prompts.

    A Hub name, and a folder without a template, are returned as they are.
    """
    source = Path(resolve_base(name))
    if not source.is_dir() or not _has_template(source):
        return name
    own = "" if name in PACKAGED_MODELS else f"-{base_identity(str(source))[:8]}"
    target = cache_folder() / "models" / f"{slug(name)}-plain{own}"
    if (target / "config.json").exists():
        return str(target)
    with writing("the base without its chat template", target):
        work = target.with_name(f".{target.name}-{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for file in source.iterdir():
            if file.name == CONFIG and TEMPLATE in file.read_text(encoding="utf-8"):
                config = json.loads(file.read_text(encoding="utf-8"))
                config.pop(TEMPLATE, None)
                (work / file.name).write_text(json.dumps(config, indent=2), encoding="utf-8")
            elif file.is_file() and not file.name.startswith(TEMPLATE):
                _same_file(file, work / file.name)  # byte for byte: its hash is part of every cell's id
        os.replace(work, target)
    return str(target)


def _has_template(folder: Path) -> bool:
    config = folder / CONFIG
    return any(folder.glob(f"{TEMPLATE}*")) or (config.is_file() and TEMPLATE in config.read_text(encoding="utf-8"))


def _same_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy(source, target)


@dataclass(frozen=True)
class Bank:
    """Where the experts are: ``FOLDER/seed-S/ATOM``, given or to be trained.

    Attributes:
        folder: of experts that are trained here.
        given: a folder with experts to use instead.
        design: how they are trained.
        dtype: of the base that they are trained on.
        device: where to train.
    """

    folder: Path
    given: Path | None
    design: SkillsDesign
    dtype: str | None
    device: str | None = None

    def place(self, atom: str, seed: int) -> Path:
        """The folder of one expert."""
        return (self.given or self.folder) / f"seed-{seed}" / atom

    def missing(self, pairs: Sequence[Pair]) -> list[tuple[str, int]]:
        """Atoms and seeds without an expert.

        Raises:
            AdapterError: experts are given, and of some seed an atom is not there.
        """
        atoms = dict.fromkeys(atom for pair in pairs for atom in (pair.first, pair.second))
        wanted = [(atom, seed) for seed in range(self.design.expert_seeds) for atom in atoms]
        found = [one for one in wanted if not (self.place(*one) / "adapter_config.json").is_file()]
        if found and self.given is not None:
            atom, seed = found[0]
            there = sorted(
                str(p.parent.relative_to(self.given)) for p in self.given.glob("seed-*/*/adapter_config.json")
            )
            raise AdapterError(
                f"`experts` {self.given}: no adapter for the atomic skill {atom!r} of seed {seed}, expected it in "
                f"seed-{seed}/{atom}. Found: {', '.join(there) or 'none'}. Leave its pair or seed out, or leave `experts` out to train all."
            )
        return found

    def hashes(self, pair: Pair, seed: int) -> dict[str, str]:
        """Atom → hash of its adapter, or of all that determines the one that will be trained."""
        found = {}
        for atom in (pair.first, pair.second):
            place = self.place(atom, seed)
            if (place / "adapter_config.json").is_file():
                found[atom] = read_adapter(atom, place).file.sha256
            else:
                found[atom] = content_hash([asdict(self.design.recipe_of(atom, seed)), self.dtype])
        return found

    def train(self, model: Any, atom: str, seed: int) -> None:
        """Train one expert; its file names the base and no folder of this machine."""
        recipe = self.design.recipe_of(atom, seed)
        rows = {atom: skill_rows(atom, "train")}
        train_experts(model, rows, self.folder / f"seed-{seed}", recipe, resume=True, device=self.device)
        file = self.place(atom, seed) / "adapter_config.json"
        config = {**json.loads(file.read_text(encoding="utf-8")), "base_model_name_or_path": self.design.base}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def check_atoms(
    bank: Bank, pairs: Sequence[Pair], model: Any, tokenizer: Any, records: Path
) -> dict[tuple[str, int], float]:
    """Exact match of every expert on its own test rows, measured once; ``records`` keeps it."""
    found: dict[tuple[str, int], float] = {}
    known = {r["case"]: r for r in (read_records(records) if records.exists() else ()) if r["suite"] == CHECKED}
    for atom in dict.fromkeys(atom for pair in pairs for atom in (pair.first, pair.second)):
        for seed in range(bank.design.expert_seeds):
            sha = read_adapter(atom, bank.place(atom, seed)).file.sha256
            case = f"{atom}/seed-{seed}/{sha[:12]}"
            if case not in known:
                known[case] = _checked(bank, atom, seed, model, tokenizer, case, sha)
                append_records(records, [known[case]])
            found[atom, seed] = known[case]["metrics"]["acc"]["value"]
            logger.info(f"atomic expert {atom}, seed {seed}: exact match {found[atom, seed]:.3f} on its own test rows")
    return found


def _checked(bank: Bank, atom: str, seed: int, model: Any, tokenizer: Any, case: str, sha: str) -> dict[str, Any]:
    composed = compose(model, {atom: str(bank.place(atom, seed))}, gate="uniform", top_k=1)
    scoring = Scoring(batch_size=bank.design.scoring.batch_size, max_new_tokens=bank.design.scoring.max_new_tokens)
    rows = {atom: skill_rows(atom, "test")}
    record = score_system(f"expert: {atom}", composed, tokenizer, rows, scoring, {"seed": seed, "sha256": sha})[0]
    composed.unload()
    return {**record, "suite": CHECKED, "case": case}


def good_pairs(pairs: Sequence[Pair], reached: Mapping[tuple[str, int], float]) -> tuple[list[Pair], list[str]]:
    """The pairs of which every expert reaches the bar, and of the others what was found.

    Raises:
        RadarGateError: none is left.
    """
    good, left_out = [], []
    for pair in pairs:
        low = {
            f"{atom} (seed {seed}): {value:.3f}"
            for (atom, seed), value in reached.items()
            if atom in (pair.first, pair.second) and value < BAR
        }
        if low:
            left_out.append(f"{pair.name}: exact match on own test rows below {BAR}: {', '.join(sorted(low))}")
        else:
            good.append(pair)
    if not good:
        raise RadarGateError(
            f"no pair of skills has experts that know their own task: {'; '.join(left_out)}. What they cannot do alone cannot be "
            "composed. Train them longer (`expert_steps`), take a larger base, or give better ones with `experts`."
        )
    return good, left_out
