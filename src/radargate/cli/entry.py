"""The command line: parse, call, print. Each command lives in ``radargate.cli``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from radargate.cli.flags import flags_of, in_flags, name_columns
from radargate.errors import OptionError, RadarGateError, first_line, out_of_memory, printable
from radargate.io import progress
from radargate.io.disk import write_fault
from radargate.io.processes import is_main_process, process_count
from radargate.registry import unknown_name

COMMANDS = (
    "quickstart",
    "choose",
    "doctor",
    "plan",
    "experts",
    "train",
    "verify",
    "eval",
    "compare",
    "experiment",
    "generate",
    "chat",
    "explore",
    "serve",
    "vllm",
    "export",
    "run",
    "bench",
)

_OTHERS = (["run"], ["vllm"])  # commands that become another tool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 0 only on success."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] not in _OTHERS:  # another tool's own process, with its own lines
        _quiet_libraries()
    _show_log()
    parser = build_parser(argv)
    known: dict[str, str] = {}
    try:
        _check_command(argv)
        args = _parsed(parser, _with_config(argv))
        known = _Lines.flags = args.flags
        _check_processes(args.command)
        name_columns(args)
        code = args.run(args)
        sys.stdout.flush()  # here, where a full disk behind a redirection still gets a message
        return code
    except BrokenPipeError:
        _drop_output()
        return 1
    except RadarGateError as error:
        print(f"radargate: error: {in_flags(str(error), known)}", file=sys.stderr)
        return 1
    except OSError as error:  # what `storage.writing` does not stand around: printing, a temporary file, reading
        reason = write_fault(error)
        if reason and error.filename is None:
            _drop_output()
        what = f"{error.filename or 'the output'}: {reason}. Free some space or choose another folder, then run the command again."
        print(f"radargate: error: {printable(str(what if reason else error))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(
            f"radargate: error: not enough memory ({first_line(error)[:120]}). Lower --batch-size, --max-length or "
            "--max-new-tokens, or take a smaller --dtype; radargate plan predicts what training needs.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("radargate: stopped.", file=sys.stderr)
        return 130


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole parser, from the commands' own descriptions."""
    parser = argparse.ArgumentParser(
        prog="radargate",
        description="Compose trained LoRA adapters into one model with a gate that stretches and rotates them.",
        epilog="radargate COMMAND --help shows a command's flags and an example.",
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("radargate"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"radargate.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--config", metavar="FILE.yaml", help="read flags from a file; the command line wins")
        module.add_arguments(command)
        command.set_defaults(run=module.run, flags=flags_of(command))
    return parser


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """What was typed; argparse gives a list that may be empty only what stands before the first flag."""
    args, rest = parser.parse_known_args(argv)
    if rest:
        if "adapters" not in args or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.adapters += rest
    return args


def _check_command(argv: list[str]) -> None:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise OptionError(unknown_name("command", argv[0], list(COMMANDS)))


def _check_processes(command: str) -> None:
    started = process_count()
    if started > 1 and command not in ("train", "run"):
        raise OptionError(
            f"the launcher started {started} processes, and of the commands only train shares its work among them. Start "
            f"radargate {command} without it."
        )


def _with_config(argv: list[str]) -> list[str]:
    """Put the flags of ``--config FILE.yaml`` before those of the command line, which so win."""
    name = None
    if argv[:1] in _OTHERS:  # the tool's own flag
        return argv
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            name = argv[index + 1]
        elif word.startswith("--config="):
            name = word.partition("=")[2]
    if name is None:
        return argv
    import yaml

    try:
        with open(name, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"--config {name}: cannot be read ({str(error).splitlines()[0]}).") from error
    if not isinstance(values, dict):
        raise OptionError(f"--config {name}: found {type(values).__name__}, expected lines of 'flag: value'.")
    flags: list[str] = []
    for key, value in values.items():
        flag = "--" + str(key).replace("_", "-")
        if isinstance(value, bool):
            flags += [flag] if value else []
        elif isinstance(value, list):
            flags += [part for item in value for part in (flag, str(item))]
        elif value is not None:
            flags += [flag, str(value)]
    return [argv[0], *flags, *argv[1:]]


def _drop_output() -> None:
    """Let what is left in the output's buffer go nowhere: flushing it at exit would fail a second time."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: an output that is no file, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Lines(logging.Handler):
    """Prints the library's messages to standard error, a line each, with the command's flags."""

    flags: Mapping[str, str] = MappingProxyType({})

    def emit(self, record: logging.LogRecord) -> None:
        if is_main_process() and not (
            progress.quiet() and record.levelno < logging.WARNING and record.name != progress.__name__
        ):
            progress.print_line(in_flags(printable(record.getMessage()), self.flags), sys.stderr)


def _show_log() -> None:
    package = logging.getLogger("radargate")
    if not any(isinstance(handler, _Lines) for handler in package.handlers):
        package.addHandler(_Lines())
        package.setLevel(logging.INFO)
    progress.draw_bars()


def _quiet_libraries() -> None:
    """Leave the screen to our own lines: other libraries' progress bars and notices go."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_TQDM", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says on import which kernels it lacks
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of processes that we start
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=r"(peft|transformers|accelerate|torch)\.")


if __name__ == "__main__":
    sys.exit(main())
