"""What a launcher of several processes (``torchrun``, ``accelerate launch``) says about this one."""

from __future__ import annotations

import os


def process_count() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0
