"""``python -m radargate``."""

import sys

from radargate.cli.entry import main

sys.exit(main())
