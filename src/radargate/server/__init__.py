"""Compositions behind an OpenAI-compatible HTTP interface: one thread owns the model, requests share its batches."""
