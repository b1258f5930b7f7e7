"""Adapters on disk and experts in memory: safe reading, checks against a base model, banks, writing back."""

# importing PEFT ends in importing radargate.model, which needs the modules here: it must be over before one of them begins
import peft as _peft  # noqa: F401
