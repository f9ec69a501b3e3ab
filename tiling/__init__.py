"""Plans in numpy: what a decode's shapes decide, and who gets which part of the work."""

from .explain import Explanation, explain
from .plan import DecodeDesc, workspace_bytes

__all__ = ["DecodeDesc", "Explanation", "explain", "workspace_bytes"]
