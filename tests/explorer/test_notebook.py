"""The notebook in examples/ runs from top to bottom, on a tiny model, and makes a page with the trace's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import HANG
from test_explorer import embedded

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("plotly")
NOTEBOOK = Path(__file__).parents[2] / "examples" / "explore.ipynb"


def test_the_notebook_runs_and_is_kept_without_outputs(zoo, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert not any(cell.outputs or cell.execution_count for cell in code.values())
    tiny = zoo["llama"]
    experts = {name: str(folder) for name, folder in tiny["adapters"].items()}
    assert code["parameters"].metadata.tags == ["parameters"]
    code["parameters"].source = f"BASE, EXPERTS = {str(tiny['base'])!r}, {experts!r}\nPROMPT = 'is a whale a fish?'"
    nbclient.NotebookClient(notebook, timeout=HANG, resources={"metadata": {"path": str(tmp_path)}}).execute()

    first, second = embedded((tmp_path / "explorer.html").read_text(encoding="utf-8"))["traces"]
    effect = eval(code["effect"].outputs[0]["data"]["text/plain"])
    most = max(effect, key=effect.get)
    assert first["effect"] == pytest.approx(effect, abs=1e-5) and set(effect) == set(experts)
    assert first["tokens"] == second["tokens"] and "".join(first["tokens"]).startswith("is a whale a fish?")
    assert (first["name"], second["name"]) == ("all experts", f"without {most}") and first["nll"] != second["nll"]
    printed = code["site"].outputs[0]["text"].splitlines()
    assert len(printed) == 1 + len(first["tokens"]) and printed[1].endswith("0.000 rad")
    assert "explorer.html" in code["explorer"].outputs[0]["data"]["text/html"]
