"""Every error a user can cause: it says what was found, what was expected, and what to do next."""

from __future__ import annotations


class RadarGateError(ValueError):
    """Base of all RadarGate errors; the command line prints its message as one line and exits 1."""


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
    """A result cannot be written: the disk is full, or the folder may not be written."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for one-line errors."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
