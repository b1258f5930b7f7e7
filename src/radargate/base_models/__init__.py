"""Base models by name: loading, the dtype, the cache of de-quantised ones. Imports io."""
