"""Several samplers on the same seeds, into one results folder, from wherever it stopped last time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from specpolicy.evaluation.comparison import Workplace
from specpolicy.evaluation.results import ResultStore
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler
from specpolicy.rollout.env_worker import EnvPool
from specpolicy.rollout.episodes import Batch, EpisodeResult, Unit, episode_keys, plan_units
from specpolicy.utils.progress import progress_bar

_log = logging.getLogger(__name__)


def run_study(
    policy: ChunkPolicy,
    samplers: Mapping[str, ChunkSampler],
    pool: EnvPool,
    store: ResultStore,
    *,
    task: str,
    seeds: Sequence[int],
    repeats: int | Mapping[str, int] = 1,
    block_size: int = 100,
    retry_crashed: bool = False,
    crash_limit: int | None = 20,
) -> list[EpisodeResult]:
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
        repeats: episodes from each of them, with different random streams of the policy; one number, or one a sampler.
        block_size: seeds in a block; at least several times the number of environments, or slots idle.
        retry_crashed: run crashed episodes of an earlier run again.
        crash_limit: see :func:`rollout`.

    Returns:
        All records of these samplers and seeds, those of earlier runs included.

    Raises:
        EvaluationAborted: nothing but crashes came.
    """
    counts = (
        dict.fromkeys(samplers, repeats) if isinstance(repeats, int) else {name: repeats[name] for name in samplers}
    )
    done = store.done(count_crashed=not retry_crashed)
    units = list(plan_units(task, counts, seeds, done, block_size))
    wanted = {key for name, count in counts.items() for key in episode_keys(name, seeds, count)}
    batches = Workplace(policy, samplers, pool, crash_limit).run(units)
    collect(batches, {task: store}, units, finished=len(wanted & done))
    return [record for record in store.records() if record.key in wanted]


def collect(
    batches: Iterable[Batch],
    stores: Mapping[str, ResultStore],
    units: Sequence[Unit],
    finished: int = 0,
    before_saving: Callable[[Batch], None] | None = None,
) -> None:
    """Save what comes, and show how far it is. However this ends, what came is saved.

    Args:
        batches: ended episodes.
        stores: where to put them, by task.
        units: all that is awaited.
        finished: episodes that were there before.
        before_saving: called with each batch before it is saved.
    """
    awaited = Counter[tuple[str, str]]()
    for unit in units:
        awaited[unit.task, unit.sampler] += len(unit.keys)
    ended, won = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with progress_bar("episodes", total=finished + awaited.total(), completed=finished) as bar:
        for batch in batches:
            if before_saving is not None:
                before_saving(batch)
            for record in batch.records:
                stores[batch.task].append(record)
                which = batch.task, record.sampler
                ended[which] += 1
                won[which] += record.success
                bar.describe(f"{batch.task} {record.sampler} {won[which]}/{ended[which]}")
                bar.advance()
                if ended[which] == awaited[which]:
                    _log.info("%s, %s: %d of %d episodes of this run succeeded", *which, won[which], ended[which])
