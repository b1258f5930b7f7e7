"""Disk, records, the cache folder, processes and progress: bytes in and out. Imports errors only."""
