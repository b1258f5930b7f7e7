"""Training of experts and gates on ``transformers.Trainer``; helpers for a user's own Trainer."""
