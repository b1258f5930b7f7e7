"""Which cells a records file holds whole, so that no cell is run twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from radargate.errors import DataError
from radargate.experiments.run_cell import RECORDS
from radargate.records import read_records, write_atomic


def finished_cells(file: Path) -> set[str]:
    """Ids of whole cells; what a crash left of others is dropped from the file."""
    if not file.exists():
        return set()
    records = read_records(file)
    whole = {r["case"] for r in records if r["suite"] == "cell"}
    kept = [r for r in records if r["suite"] != "eval" or r["cell"]["id"] in whole]
    if len(kept) < len(records):
        write_atomic(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
    return whole


def finished_elsewhere(folders: Sequence[str | Path], wanted: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Records of those wanted cells that other grids finished: an id holds all that a result depends on, so they serve.

    Args:
        folders: of other grids.
        wanted: ids of cells.

    Returns:
        Id → its records, the cell's own last.

    Raises:
        DataError: a folder holds no records.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    left = set(wanted)
    for folder in folders:
        if not (file := Path(folder) / RECORDS).exists():
            raise DataError(f"--reuse {folder}: found no {RECORDS}. Give the --out of another experiment.")
        records = [r for r in read_records(file) if r["suite"] in ("cell", "eval")]
        whole = {r["case"] for r in records if r["suite"] == "cell"} & left
        for record in records:
            if (cell_id := record["cell"]["id"]) in whole:
                found.setdefault(cell_id, []).append(record)
        left -= whole
    return found
