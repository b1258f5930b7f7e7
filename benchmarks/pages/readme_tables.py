"""The README's tables of commands, gates, rules and architectures, from the registries themselves."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re

from radargate.architectures import ARCHITECTURES
from radargate.cli import COMMANDS
from radargate.composition.composing import compose
from radargate.gates import GATES
from radargate.gates.rules import RULES
from radargate.registry import Registry
from radargate.report.table import markdown


def commands() -> str:
    """Every command with what it must be given, and its help."""
    rows = []
    for name in COMMANDS:
        module = importlib.import_module(f"radargate.cli.{name}")
        rows.append([f"`radargate {name}{_arguments(module)}`", _escaped(module.HELP)])
    return markdown(["command", "does"], rows)


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


def _arguments(module: object) -> str:
    """Positional arguments and required flags, as in ``BASE ADAPTER… --out DIR``."""
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)  # type: ignore[attr-defined]
    words = []
    for action in parser._actions:
        value = _escaped(str(action.metavar or action.dest.upper()))
        if action.option_strings:
            words += [f"{action.option_strings[0]} {value}"] if action.required else []
        else:
            words.append({"+": f"{value}…", "*": f"[{value}…]"}.get(str(action.nargs), value))
    return "".join(f" {word}" for word in words)


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("``", "`")
