"""``python -m enroll.device``: the same as the command ``ironroot-device``."""

from __future__ import annotations

import sys

from enroll.device.main import main

sys.exit(main())
