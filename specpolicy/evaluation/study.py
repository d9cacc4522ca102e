"""Several samplers on the same seeds, into one results folder, from wherever it stopped last time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from specpolicy.progress import progress_bar

from .episodes import EpisodeRecord, episode_keys
from .pool import EnvPool
from .protocols import Policy, Sampler
from .rollout import rollout
from .store import ResultStore

_log = logging.getLogger(__name__)


def run_study(
    policy: Policy,
    samplers: Mapping[str, Sampler],
    pool: EnvPool,
    store: ResultStore,
    *,
    task: str,
    seeds: Sequence[int],
    repeats: int = 1,
    block_size: int = 100,
    retry_crashed: bool = False,
    crash_limit: int | None = 20,
) -> list[EpisodeRecord]:
    """Run every episode that ``store`` does not have yet.

    Seeds are taken in blocks, each with every sampler before the next, so that a study cut short still compares
    samplers on the same seeds. Interrupted by Ctrl-C or an exception, what has finished is saved.

    Args:
        policy: whom to ask.
        samplers: by name.
        pool: where episodes run.
        store: where records go.
        task: name kept in the records.
        seeds: of the initial states.
        repeats: episodes from each of them, with different random streams of the policy.
        block_size: seeds in a block; at least several times the number of environments, or slots idle.
        retry_crashed: run crashed episodes of an earlier run again.
        crash_limit: see :func:`rollout`.

    Returns:
        All records of these samplers and seeds, those of earlier runs included.

    Raises:
        EvaluationAborted: nothing but crashes came.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    done = store.done(count_crashed=not retry_crashed)
    wanted = {key for name in samplers for key in episode_keys(name, seeds, repeats)}
    successes = {name: 0 for name in samplers}
    ended = {name: 0 for name in samplers}
    try:
        with progress_bar("episodes", total=len(wanted), completed=len(wanted & done)) as bar:
            for first in range(0, len(seeds), block_size):
                block = seeds[first : first + block_size]
                for name, sampler in samplers.items():
                    missing = [key for key in episode_keys(name, block, repeats) if key not in done]
                    for record in rollout(policy, sampler, pool, missing, task=task, crash_limit=crash_limit):
                        store.append(record)
                        successes[name] += record.success
                        ended[name] += 1
                        bar.describe(f"{name} {successes[name]}/{ended[name]}")
                        bar.advance()
                    _log.info("%s: %d of %d episodes succeeded in this run", name, successes[name], ended[name])
    finally:
        store.flush()
    return [record for record in store.records() if record.key in wanted]
