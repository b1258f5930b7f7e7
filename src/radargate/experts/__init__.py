"""Adapters on disk and experts in memory: safe reading, checks against a base model, banks, writing back."""
