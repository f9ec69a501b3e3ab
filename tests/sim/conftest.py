"""Makes the simulator importable as `sim`, as it lies in the source tree."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

import sim  # noqa: F401
