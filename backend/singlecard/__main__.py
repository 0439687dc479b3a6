"""``python -m singlecard``: the command line."""

from __future__ import annotations

import sys

from singlecard.cli import main

sys.exit(main())
