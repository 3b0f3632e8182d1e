"""Import this first: it puts this checkout at the head of sys.path, so that a benchmark measures the code beside it.

A script's own folder comes first there otherwise, and has a module `recipes`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
