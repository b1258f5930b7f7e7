"""The house stays in order: imports point one way, files stay small, importing radargate is light."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fresh
from radargate.errors import UnknownNameError
from radargate.registry import Registry

SOURCE = Path(__file__).parents[1] / "src" / "radargate"
# bottom to top: a package imports only from those before it
ORDER = [
    "errors",
    "registry",
    "io",
    "report",
    "ops",
    "data",
    "base_models",
    "experts",
    "architectures",
    "gates",
    "composition",
    "training",
    "evaluation",
    "explorer",
    "exporting",
    "comparison",
    "server",
    "vllm",
    "quickstart",
    "paper",
    "api",
    "cli",
]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way_and_files_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "split the file along a real seam"
    assert ast.get_docstring(ast.parse(text)), "say what the file is for"
    own = part_of(path)
    if own in ("__init__", "__main__") or "DeprecationWarning" in text:  # names of before only warn and forward
        return
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"radargate.{a.name}" for a in node.names] if node.module == "radargate" else [node.module or ""]
        for name in names:
            if name.startswith("radargate.") and (target := name.split(".")[1]) != own:
                assert ORDER.index(target) < ORDER.index(own), f"{path.name} imports {name}, which lies above it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_public_things_have_docstrings(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_importing_the_package_is_light_and_still_registers_with_peft():
    code = (
        "import importlib.util, sys, radargate\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'import radargate loads too much'\n"
        "assert importlib.util.find_spec('peft')  # only asking must not spend the registration\n"
        "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as tuners\n"
        "assert 'RADAR' in tuners\n"
        "import radargate.cli; radargate.cli.build_parser()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_lines_help_needs_no_torch():
    code = "import sys\nfrom radargate.cli import build_parser\nbuild_parser()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_and_public_name_can_be_the_first_that_is_imported():
    """Each in a process of its own: a circle of imports shows only to whoever enters it at the wrong place."""
    import radargate

    names: dict[str, list[str]] = {}
    for name in radargate.__all__:
        names.setdefault(radargate._PUBLIC.get(name, name), []).append(f"radargate.{name}")
    wanted = [f"import radargate; {'; '.join(same)}" for same in names.values()]  # those of one module come in together
    wanted += ["import radargate.gates.base", "import radargate.composition.layer"]  # deep inside, where circles close
    for path in (SOURCE / "cli").glob("*.py"):
        wanted.append("\n".join(re.findall(r"^    ((?:from|import) .+)$", path.read_text(), re.M)))
    # what a gate, rule or architecture of somebody's own imports
    wanted += [
        f"import radargate.{name}" for name in ("gates.base", "gates.rules.base", "architectures.base", "experts.bank")
    ]
    assert any("radargate.experts.doctor" in lines for lines in wanted)
    for lines in wanted:
        result = fresh.run("-c", lines)
        assert result.returncode == 0, f"this cannot come first: {lines}\n{result.stderr}"


def test_public_names_stay_functions_once_every_module_was_imported():
    """A module of a function's name would take its place in the package after its first import."""
    code = (
        "import importlib, pkgutil, radargate\n"
        "for found in pkgutil.walk_packages(radargate.__path__, 'radargate.'):\n"
        "    if not found.name.endswith('__main__') and '.triton.' not in found.name and '.vllm.' not in found.name:\n"
        "        importlib.import_module(found.name)\n"
        "for name in radargate.__all__:\n"
        "    assert name == 'ops' or callable(getattr(radargate, name)), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_know_nothing_of_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, radargate.io.records; assert 'torch' not in sys.modules"], check=True
    )


def test_unknown_names_give_the_nearest():
    registry = Registry("gate", {"stretch": "a:b", "rotation": "a:c"})
    with pytest.raises(UnknownNameError, match="Did you mean 'stretch'"):
        registry.get("strech")


def test_no_modules_import_each_other_in_a_circle():
    files = {".".join(("radargate", *p.relative_to(SOURCE).with_suffix("").parts)): p for p in SOURCE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("radargate"):
                dotted = (f"{node.module}.{alias.name}" for alias in node.names)
                found |= {one if one in files else str(node.module) for one in dotted}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in files}
        graph[name] = found - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises with the circle
