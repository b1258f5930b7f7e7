"""The main job on an embedded default: run and report. Imports no paper or cli."""
