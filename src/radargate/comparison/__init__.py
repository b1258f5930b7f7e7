"""Every way of combining the same adapters on the same rows: runs, statistics, report. Imports no paper, server or cli."""
