"""Which cells a records file holds whole, so that no cell is run twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.comparison.run_cell import RECORDS
from radargate.errors import DataError
from radargate.io.records import read_records, write_atomic


def finished_cells(file: Path, mend: bool = True) -> set[str]:
    """Ids of whole cells; ``mend`` drops what a crash left of others from the file."""
    if not file.exists():
        return set()
    records = read_records(file)
    whole = {r["case"] for r in records if r["suite"] == "cell"}
    kept = [r for r in records if r["suite"] != "eval" or _cell(r) in {*whole, ""}]
    if mend and len(kept) < len(records):
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
            raise DataError(f"`reuse` {folder}: found no {RECORDS}. Give the folder of another experiment.")
        records = [r for r in read_records(file) if r["suite"] in ("cell", "eval")]
        whole = {r["case"] for r in records if r["suite"] == "cell"} & left
        for record in records:
            if (cell_id := _cell(record)) in whole:
                found.setdefault(cell_id, []).append(record)
        left -= whole
    return found


def _cell(record: Mapping[str, Any]) -> str:
    """Id of the cell that a record belongs to; empty where a command without cells wrote it."""
    return str(record.get("cell", {}).get("id", ""))
