"""Composed skills: tasks that need two experts at once, every way of using them, and the one contrast that decides."""
