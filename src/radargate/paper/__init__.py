"""The paper's experiments: catalogue, grids of resumable cells, probes of trained gates, report. Only cli imports it."""
