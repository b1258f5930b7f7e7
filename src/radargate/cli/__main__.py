"""``python -m radargate.cli``."""

import sys

from radargate.cli.entry import main

sys.exit(main())
