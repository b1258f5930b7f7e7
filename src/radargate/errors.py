"""Every error a user can cause: it says what was found, what was expected, and what to do next."""

from __future__ import annotations


class RadarGateError(ValueError):
    """Base of all RadarGate errors; the command line prints its message as one line and exits 1.

    Messages quote files from strangers: what a terminal would obey, or could not print, is escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class UnknownNameError(RadarGateError):
    """A gate, rule, architecture or option name that is not registered."""


class OptionError(RadarGateError):
    """An option has a value that cannot work, alone or together with another."""


class AdapterError(RadarGateError):
    """An adapter on disk is damaged, unsafe, not a plain LoRA, or does not fit the base model."""


class InactiveExpertError(AdapterError):
    """An adapter matches no site of the base model or leaves its output unchanged."""


class BaseModelError(RadarGateError):
    """The base model cannot be found, fetched, verified or loaded."""


class BundleError(RadarGateError):
    """A saved composition is incomplete, altered, or belongs to another base model."""


class DataError(RadarGateError):
    """A data source or row does not fit the schema."""


class TrainContractError(RadarGateError):
    """Training would change, or changed, something other than the gates."""


class BackendError(RadarGateError):
    """An explicitly requested backend or route cannot be used here."""


class StorageError(RadarGateError):
    """A result cannot be written: the disk is full, the folder may not be written, or another process writes there."""


class OutOfMemoryError(RadarGateError):
    """A piece of work needs more memory than there is; the message says what to lower."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for one-line errors."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def printable(text: str) -> str:
    """The same text with control characters and lone surrogates escaped; line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 100) -> str:
    """A value from a stranger's file for a message: on one line, printable, and cut at ``limit`` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = printable(text[: limit + 1]).replace("\n", "\\n")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or here; torch need not be there to ask."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )
