"""The reference of the site, from the code itself: commands from --help, options from dataclasses, the API from docstrings."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import inspect
import re
from typing import Any

import radargate
from radargate.architectures import ARCHITECTURES
from radargate.cli.entry import build_parser
from radargate.composition.composing import compose
from radargate.gates import GATES
from radargate.gates.rules import RULES
from radargate.registry import Registry
from radargate.report.table import markdown

PAGES = ("commands.md", "options.md", "systems.md", "api.md")
PAGES_BELOW = tuple(f"reference/{name}" for name in PAGES)
WIDTH = 100  # letters of a line of --help
OPTIONS = (
    "radargate.training.options:GateTraining",
    "radargate.training.options:ExpertOptions",
    "radargate.comparison.choosing.options:Choosing",
    "radargate.comparison.options:Comparison",
    "radargate.evaluation.options:Scoring",
    "radargate.exporting.options:Fitting",
    "radargate.quickstart.options:Quickstart",
)
API = {
    "Make and use a model": ("choose", "compose", "load", "generate", "using", "add_experts", "shipped_experts"),
    "Train": ("train", "GateTraining", "DenseStart", "parameter_groups", "describe_texts", "describe_norms", "domain_vectors"),
    "Measure and look": ("evaluate", "compare", "trace"),
    "Save as one LoRA": ("export", "save_as_lora", "fit_lora", "merge_adapters"),
    "Underneath": ("RadarConfig", "RadarModel", "expert_bank", "write_expert", "RadarGateError"),
}  # fmt: skip


def pages() -> dict[str, str]:
    """File, below docs → its text."""
    return dict(zip(PAGES_BELOW, (commands(), options(), systems(), api()), strict=True))


def commands() -> str:
    """Every command with its --help."""
    parser = build_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Commands", "What `radargate COMMAND --help` prints. Flags may come from a file (`--config FILE.yaml`)."]
    for name, command in action.choices.items():
        command.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=WIDTH)
        parts += [f"## {name}", f"```text\n{command.format_help().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def options() -> str:
    """Every dataclass of options that people type, then those of gates, rules and architectures."""
    parts = [
        "# Options",
        "Name, default and meaning of every option, from the code. [Readings of the paper](../readings.md) says why they are there.",
    ]
    for place in OPTIONS:
        module, _, name = place.partition(":")
        parts += _fields(name, getattr(importlib.import_module(module), name))
    for kind, registry in (("gate", GATES), ("rule", RULES), ("architecture", ARCHITECTURES)):
        parts.append(f"## Of each {kind}")
        for name in registry:
            own = getattr(registry.get(name), "Options", None)
            parts += _fields(f"{kind} {name}", own, "###") if own and dataclasses.fields(own) else []
    return "\n\n".join(parts) + "\n"


def systems() -> str:
    """Every gate, rule and architecture in one sentence."""
    return f"# Gates, rules, architectures\n\n{gates()}\n"


def api() -> str:
    """Docstrings of the public names, which mkdocstrings puts in."""
    named = [name for names in API.values() for name in names]
    missing = set(radargate.__all__) - {*named, "ops"}
    assert not missing, f"benchmarks/pages/reference.py: put {missing} into API"
    parts = ["# Python", "Everything here is found at `radargate.NAME`."]
    for title, names in API.items():
        parts.append(f"## {title}")
        for name in names:
            found = getattr(radargate, name)
            parts.append(f"::: {found.__module__}.{found.__qualname__}")
    parts += ["## A gate of your own", "::: radargate.gates.base.Gate", "::: radargate.gates.base.Call"]
    return "\n\n".join(parts) + "\n"


def _fields(title: str, options: Any, level: str = "##") -> list[str]:
    """A heading and a table of one dataclass."""
    described = _attributes(options)
    rows = []
    for field in dataclasses.fields(options):
        text = field.metadata.get("help") or described.get(field.name, "")
        default = (
            field.default if field.default is not dataclasses.MISSING else "{}" if field.default_factory is dict else ""
        )
        rows.append(
            [
                f"`{field.name}`",
                f"`{default!r}`" if field.default is not dataclasses.MISSING else str(default),
                _escaped(text() if callable(text) else text),
            ]
        )
    return [f"{level} {title}", markdown(["option", "default", "meaning"], rows)]


def _attributes(options: type) -> dict[str, str]:
    """The attributes that a Google-style docstring describes, of the class and those it builds on."""
    found: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        _, _, listed = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", listed, re.M):
            found |= {each: " ".join(text.split()) for each in name.split(", ")}
    return found


def gates() -> str:
    """Every gate, rule and architecture in one sentence: the first of its docstring."""
    rules = [[*row, "yes" if RULES.get(name).static else "no"] for name, row in zip(RULES, _rows(RULES), strict=True)]
    return "\n\n".join(
        (
            markdown(["gate (trained)", "in one sentence"], _rows(GATES, _default("gate"))),
            markdown(["rule (nothing trained by gradients)", "in one sentence", "one LoRA?"], rules),
            markdown(["architecture", "in one sentence"], _rows(ARCHITECTURES, _default("architecture"))),
        )
    )


def first_sentence(text: str) -> str:
    """Up to the first full stop that a space or the end follows."""
    paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    match = re.match(r".*?\.(?=\s|$)", paragraph)
    return match[0] if match else paragraph


def _rows(registry: Registry, default: str | None = None) -> list[list[str]]:
    return [
        [f"`{name}`{' (default)' if name == default else ''}", _escaped(first_sentence(registry.get(name).__doc__))]
        for name in registry
    ]


def _default(parameter: str) -> str:
    return str(inspect.signature(compose).parameters[parameter].default)


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("``", "`").replace("<", "&lt;")
