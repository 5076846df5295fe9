"""``python -m effnet_fast.cli``."""

import sys

from effnet_fast.cli import main

sys.exit(main())
