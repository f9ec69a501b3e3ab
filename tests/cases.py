"""The inputs of the tests: those of the package, for ``pa_hp selftest`` has them too."""

from pa_hp.bench.cases import (
    CASES,
    DTYPES,
    IMPOSSIBLE_ID,
    DecodeCase,
    Inputs,
    lay_out,
    live_slots,
    make,
    named,
)

__all__ = [
    "CASES",
    "DTYPES",
    "IMPOSSIBLE_ID",
    "DecodeCase",
    "Inputs",
    "lay_out",
    "live_slots",
    "make",
    "named",
]
