"""Every synchronisation of the NPU kernel is needed: left out, it is noticed.

Each is left out in turn, as if its line were not there, and each wait once more such that it takes
its flag and orders nothing. A finding of the checks or another bit in the answer must show it, in
one of the shapes at least.
"""

import functools
import random
import re

import pa_hp
import pytest
import torch
from npu.shapes import VARIED, build
from pa_hp.bench.checks import bits
from pa_hp.ops import simulate

FOLDER = simulate._SOURCE.parent
SAMPLE = 20  # sites of the thinned run

# What is not noticed, as "file function: statement".
# Left out:
NOT_NEEDED = {
    # What it orders, the sum before add_tails reads it, accumulate's own last barrier orders too:
    # between a tile's sum and its tails there is always the accumulation of the tile before.
    "vector.h add_up: pipe_barrier(PIPE_V);",
}
# Waits that take a flag and order nothing. At the end of a launch nothing is left to order: they
# take back what was set before the loops, so that the next launch finds every flag down.
BALANCE = {
    *(
        f"cube.h await_free: wait_flag({flag});"
        for flag in (
            "PIPE_MTE1, PIPE_MTE2, (event_t)(kSlotEvent + i)",
            "PIPE_MTE1, PIPE_MTE2, (event_t)(kWeightsEvent + i)",
            "PIPE_MTE1, PIPE_MTE2, (event_t)(kQueryEvent + i)",
            "PIPE_M, PIPE_MTE1, (event_t)(kL0Event + i)",
            "PIPE_FIX, PIPE_M, (event_t)(kScoreEvent + i)",
            "PIPE_FIX, PIPE_M, (event_t)kOutputEvent",
        )
    ),
    *(
        f"decode.cce decode: wait_flag({flag});"
        for flag in (
            "PIPE_V, PIPE_MTE2, (event_t)kScoresIn",
            "PIPE_V, PIPE_MTE2, (event_t)kOutputIn",
            "PIPE_V, PIPE_MTE2, (event_t)kPartialsIn",
            "PIPE_MTE3, PIPE_V, (event_t)kWeightsOut",
            "PIPE_MTE3, PIPE_V, (event_t)kResultOut",
        )
    ),
    # The stores of one fill read the same bytes, so they need no order among each other.
    "rows.h fill: if (head > 0) wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);",
}
# Other waits on the same path order these as well.
IMPLIED = {
    # Q is there: K comes behind it on the same pipe, and take_slot waits for K.
    "cube.h load_query: wait_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kQueryEvent + buffer));",
}


def described(site: str) -> str:
    """A site as "file function: statement", which other lines of the file do not change."""
    file, line = re.match(r"\w+ (\S+):(\d+) ", site).groups()
    lines = (FOLDER / file).read_text().split("\n")[: int(line)]
    heads = (re.match(r" *(?:inline )?(?:static )?__aicore__ .*?(\w+)\(", text) for text in lines)
    return f"{file} {[head[1] for head in heads if head][-1]}: {lines[-1].strip()}"


@functools.cache
def inputs(number: int):
    return build(VARIED[number])


def launch(number: int, **options):
    case = VARIED[number]
    lse = torch.full((len(case.lengths), case.heads), torch.nan)
    out, report = pa_hp.simulate(
        *inputs(number), soc=case.soc, lse=lse, timed=False, strict_visibility=True, **options
    )
    return (bits(out), bits(lse)), report


@pytest.fixture(scope="module")
def right():
    """Of every shape the right answer's bits, and the sites that it comes by."""
    runs = [launch(number) for number in range(len(VARIED))]
    assert not any(report.hazards for _, report in runs)
    return [(answer, report.sync_sites) for answer, report in runs]


def all_sites(right) -> list[str]:
    return sorted({site for _, sites in right for site in sites})


def unnoticed(right, sites: list[str], **options) -> list[str]:
    def noticed(site: str) -> bool:
        for number, (answer, own_sites) in enumerate(right):
            if site in own_sites:
                got, report = launch(number, drop=site, **options)
                if report.hazards or got != answer:
                    return True
        return False

    return [site for site in sites if not noticed(site)]


def waits(sites: list[str]) -> list[str]:
    return [site for site in sites if "wait" in site or "barrier" in site]


def test_some_synchronisations_are_needed(right):
    sites = random.Random(0).sample(all_sites(right), SAMPLE)
    assert {described(site) for site in unnoticed(right, sites)} <= NOT_NEEDED
    missing = {described(site) for site in unnoticed(right, waits(sites), blind=True)}
    assert missing <= NOT_NEEDED | BALANCE | IMPLIED


@pytest.mark.full
def test_every_synchronisation_is_needed(right):
    sites = all_sites(right)
    missing = unnoticed(right, sites)
    assert {described(site) for site in missing} == NOT_NEEDED
    assert len(missing) <= 0.03 * len(sites)


@pytest.mark.full
def test_every_wait_orders_something(right):
    missing = unnoticed(right, waits(all_sites(right)), blind=True)
    assert {described(site) for site in missing} == NOT_NEEDED | BALANCE | IMPLIED


def test_every_line_with_a_synchronisation_is_come_by(right):
    """The shapes leave out no line, so none escapes the tests above."""
    call = re.compile(
        r"\b(set_flag|wait_flag|wait_flag_dev|pipe_barrier|dsb|ffts_cross_core_sync)\("
    )
    lines = {
        f"{path.name}:{number}"
        for path in [*FOLDER.glob("*.h"), *FOLDER.glob("*.cce")]
        for number, text in enumerate(path.read_text().split("\n"), 1)
        if call.search(text.partition("//")[0])
    }
    assert lines == {site.split(" ")[1] for site in all_sites(right)}
