"""The command line: one file a command, and the entry point. Imports everything below it; nothing imports it."""

from radargate.cli.entry import COMMANDS, build_parser, main

__all__ = ["COMMANDS", "build_parser", "main"]
