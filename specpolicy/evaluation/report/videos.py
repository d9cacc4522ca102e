"""Clips of recorded episodes: one that succeeded and one that failed, played again with their own random streams."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import specpolicy
from specpolicy import samplers
from specpolicy.evaluation.report.formatting import counted, listed
from specpolicy.evaluation.report.results import RealTimeBudget, ReportSettings, TaskResults, eager
from specpolicy.policies.checkpoint import checkpoint_digest
from specpolicy.policies.protocols import ChunkPolicy, ChunkSampler
from specpolicy.rollout.env_worker import MakeEnv
from specpolicy.rollout.episodes import EpisodeResult
from specpolicy.utils.progress import progress_bar


class StageError(RuntimeError):
    """A recorded episode cannot be played again here; the message says why."""


@dataclass(frozen=True)
class Stage:
    """Whom to ask, and where to play."""

    policy: ChunkPolicy
    sampler: ChunkSampler
    make_env: MakeEnv


def set_stage(results: TaskResults, sampler: str, checkpoint: str | None = None, device: str = "cpu") -> Stage:
    """The policy, sampler and rendering environment that episodes of these results were played with.

    Args:
        results: whose manifest to follow.
        sampler: which one.
        checkpoint: where the policy is now; by default where it was.
        device: where it is to compute.

    Raises:
        StageError: the checkpoint is missing or another one, or the recipe is none of this library.
        CheckpointError: the checkpoint is damaged.
    """
    from specpolicy.policies.checkpoint import load_policy

    path = Path(checkpoint or _recorded_checkpoint(results))
    try:
        digest = checkpoint_digest(path)
    except FileNotFoundError as error:
        raise StageError(f"{error}; say where it is with checkpoint=") from error
    if digest != results.manifest.configuration.get("checkpoint"):
        raise StageError(f"{path} is not the checkpoint of these results (SHA-256 {digest[:12]}…)")
    environment = dict(results.manifest.configuration["environment"])
    policy = load_policy(path, device)
    recipe = eager(results.manifest.samplers.get(sampler, {}).get("recipe"))  # for a film or two nobody compiles
    return Stage(
        policy,
        _sampler(recipe, sampler, policy),
        MakeEnv(environment.pop("id"), {**environment, "render_mode": "rgb_array"}),
    )


def _recorded_checkpoint(results: TaskResults) -> str:
    for entry in reversed(results.manifest.provenance):
        path = (entry.get("checkpoint") or {}).get("path")
        if path:
            return str(path)
    raise StageError("the manifest does not say where the checkpoint is; say so with checkpoint=")


def _sampler(recipe: Any, name: str, policy: ChunkPolicy) -> ChunkSampler:
    """Make a sampler from its recipe, which may come from anywhere: it must name nothing but parts of this library."""
    from hydra.utils import instantiate

    if not isinstance(recipe, Mapping):
        raise StageError(f"the recipe of {name} is not kept in a form that it could be made from")
    strange = [target for target in _targets(recipe) if not _is_a_part(target)]
    if strange:
        raise StageError(f"the recipe of {name} names {', '.join(strange)}, which is no part of specpolicy")
    made: ChunkSampler = instantiate(dict(recipe))(policy)
    return made


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield str(tree["_target_"])
        for branch in tree.values():
            yield from _targets(branch)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _targets(branch)


def _is_a_part(target: str) -> bool:
    """A recipe, drafter or verifier of this library by its public name."""
    room, _, name = target.rpartition(".")
    if room == "specpolicy.samplers":
        return getattr(getattr(samplers, name, None), "__module__", None) == "specpolicy.samplers"
    part = getattr(specpolicy, name, None) if room == "specpolicy" else None
    return isinstance(part, type) and issubclass(part, specpolicy.Drafter | specpolicy.Verifier)


_log = logging.getLogger(__name__)
_ATTEMPTS = 3
_SIDE_BY_SIDE = "rollout.mp4"


@dataclass(frozen=True)
class Clip:
    """A video file and what it shows; a replay is of a single recorded episode."""

    path: Path
    title: str
    caption: str
    replay: bool


@dataclass
class Videos:
    """Clips, and in words why others are missing."""

    clips: list[Clip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def videos_of(
    results: TaskResults, sampler: str | None, pace: RealTimeBudget | None, settings: ReportSettings
) -> Videos:
    """Clips of one sampler, filmed into the results folder where it does not hold them yet; never raises.

    An episode played alone can end otherwise than when it was recorded beside others (the last bits of a network's
    output depend on the batch size, and a simulator amplifies them). Then the next candidate is tried, so that each
    clip shows what its title says.
    """
    videos = Videos()
    if not settings.videos:
        return videos
    side_by_side = results.folder / _SIDE_BY_SIDE
    if side_by_side.exists():
        approximate = listed([row.sampler for row in results.rows if row.exact is False])
        caption = "One episode with several samplers." + (
            f" Of these, approximate: {approximate}." if approximate else ""
        )
        videos.clips.append(Clip(side_by_side, "Side by side", caption, replay=False))
    if sampler is None or results.row(sampler) is None:
        videos.notes.append(f"No replay: there are no episodes of {sampler or 'an exact sampler'} here.")
        return videos
    stage: Stage | None = None
    for success in (True, False):
        word = "success" if success else "failure"
        candidates = _candidates(results, sampler, success)
        if not candidates:
            videos.notes.append(f"No {word} to show: none of the episodes of {sampler} ended as one.")
            continue
        known = next((record for record in candidates if _path(results, record).exists()), None)
        try:
            if known is None:
                stage = stage or set_stage(results, sampler, settings.checkpoint, settings.device)
                known = _film(results, candidates[:_ATTEMPTS], stage, pace)
        except Exception as error:  # a missing simulator, driver or checkpoint: the rest of the page still tells
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _log.warning("no video of a %s of %s: %s", word, sampler, reason)
            videos.notes.append(f"No video of a {word} of {sampler}. {reason}")
            continue
        if known is None:
            tried = counted(len(candidates[:_ATTEMPTS]), "recorded episode")
            videos.notes.append(f"No video of a {word} of {sampler}: {tried} ended otherwise when played alone.")
        else:
            caption = f"Seed {known.seed}" + (f", repeat {known.repeat}" if known.repeat else "")
            videos.clips.append(
                Clip(_path(results, known), f"A {word} of {sampler}", f"{caption}, played again.", True)
            )
    return videos


def _candidates(results: TaskResults, sampler: str, success: bool) -> list[EpisodeResult]:
    """Episodes that ended so, crashes left out, those of middling length first."""
    ended = [record for record in results.records if record.sampler == sampler and not record.crashed]
    ended = sorted((record for record in ended if record.success == success), key=lambda record: record.steps)
    middle = ended[len(ended) // 2].steps if ended else 0
    return sorted(ended, key=lambda record: abs(record.steps - middle))


def _path(results: TaskResults, record: EpisodeResult) -> Path:
    name = re.sub(r"[^\w.-]", "_", record.sampler)
    word = "success" if record.success else "failure"
    return results.folder / f"replay-{word}-{name}-{record.seed}-{record.repeat}.mp4"


def _film(
    results: TaskResults, candidates: Sequence[EpisodeResult], stage: Stage, pace: RealTimeBudget | None
) -> EpisodeResult | None:
    """Film the first candidate that ends as it did when it was recorded."""
    from specpolicy.evaluation.video import film_take, write_clip
    from specpolicy.rollout.env_worker import EpisodePlayer

    row = results.row(candidates[0].sampler)
    pause = row.latency.p50.value / 1e3 if row and row.latency and row.latency.p50 else None
    player = EpisodePlayer(stage.make_env, stage.policy.config.n_obs_steps, capture=True)
    try:
        with progress_bar("filming", total=len(candidates)) as bar:
            for record in candidates:
                bar.describe(f"filming {results.task}, {record.sampler}, seed {record.seed}")
                take = film_take(
                    stage.policy, stage.sampler, player, record.sampler, record.seed, record.repeat, pause
                )  # fmt: skip
                bar.advance()
                if take.success == record.success:
                    write_clip([take], _path(results, record), control_hz=pace.control_hz if pace else 20.0)
                    return record
    finally:
        player.close()
    return None
