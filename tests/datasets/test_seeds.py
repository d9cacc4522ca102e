"""Which seeds a recording takes depends on nothing but which of them succeed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from specpolicy.datasets.record import SeedQueue


@given(
    successes=st.lists(st.booleans(), min_size=1, max_size=25),
    wanted=st.integers(1, 6),
    workers=st.integers(1, 5),
    first=st.integers(0, 3),
    before=st.sets(st.integers(0, 15)),
    order=st.randoms(),
)
def test_the_first_successes_and_no_seed_in_vain(
    successes: list[bool], wanted: int, workers: int, first: int, before: set[int], order: random.Random
) -> None:
    def outcome(seed: int) -> str | None:
        return None if seed >= len(successes) or successes[seed] else "dropped it"

    seeds = SeedQueue(first, wanted, {seed: outcome(seed) for seed in before})
    under_way: set[int] = set()
    tried = set()
    while True:
        while len(under_way) < workers and (seed := seeds.next(frozenset(under_way))) is not None:
            under_way.add(seed)
            tried.add(seed)
        if not under_way:
            break
        ended = order.choice(sorted(under_way))
        under_way.remove(ended)
        seeds.note(ended, outcome(ended))
    good = [seed for seed in range(first, 60) if outcome(seed) is None][:wanted]
    bad = [seed for seed in range(first, good[-1]) if outcome(seed) is not None]
    assert seeds.successes() == good and list(seeds.failures()) == bad
    assert tried == {*good, *bad} - before


def test_failures_in_a_row() -> None:
    seeds = SeedQueue(2, 3, {0: "before the first", 2: "a", 4: "b", 5: None})
    assert seeds.failed_in_a_row() == {}
    seeds.note(7, "c")
    seeds.note(6, "d")
    assert seeds.failed_in_a_row() == {6: "d", 7: "c"}
