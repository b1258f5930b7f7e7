"""Grids of cells: each trained and scored the same way, resumable one by one."""
