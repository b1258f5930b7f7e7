"""Training of experts and gates on ``transformers.Trainer``; helpers for a user's own Trainer."""

from radargate.training.schedule import DenseStart, parameter_groups

__all__ = ["DenseStart", "parameter_groups"]
