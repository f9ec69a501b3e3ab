"""The assertions of the tests: those of the package, for ``pa_hp selftest`` has them too."""

from pa_hp.bench.checks import assert_near, bits, check_against_peer, check_lse, check_out

__all__ = ["assert_near", "bits", "check_against_peer", "check_lse", "check_out"]
