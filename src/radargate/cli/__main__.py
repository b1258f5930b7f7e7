"""``python -m radargate.cli``."""

import sys

from radargate.cli.entry import main

if __name__ == "__main__":  # processes that vLLM spawns import this file too
    sys.exit(main())
