"""What is left to compute when the observation comes, if a chain was drafted under an older one?

Episodes are played and the window of every tick is kept. At random ticks a chain is drafted under what a predictor made
of an observation some ticks old (its last value, linear extrapolation, or the checkpoint's forward model with actions
since then), and finished under the present one: NFE after the observation, and, at batch 1, with the last of these
predictors, how long that takes beside the whole sampler and few-step DDIM in the same run. The finished samples are
exact whatever the draft was (``tests/speculative/test_predraft.py``). One tick of age is what a draft has that is begun
one tick before the chunk ends; ages above that are for drafts that take longer, or for chunks asked for ahead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from specpolicy.config import compose
from specpolicy.control.executors import LastObservation, LinearObservation, Predictor
from specpolicy.control.inference import episode_generator
from specpolicy.evaluation.comparison import CheckpointLoader
from specpolicy.evaluation.statistics import mean_interval, ratio_of_medians
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.forward_model import forward_model_path, load_forward_model
from specpolicy.policies.observations import HistoryWindow, ObservationHistory
from specpolicy.rollout.env_worker import MakeEnv
from specpolicy.utils.files import atomic_path
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.provenance import collect_provenance

RESULTS = Path(__file__).resolve().parent / "results" / "predrafts"
SEED = 300_000  # of the episodes: neither trained on nor evaluated on
AGES = (1, 2, 4, 8)
FEW = ("ddim10", "ddim5")


@dataclass(frozen=True)
class Moment:
    """A tick of an episode and the windows before it, the present one last, with the actions between them."""

    windows: Sequence[HistoryWindow]
    actions: Sequence[NDArray[np.float64]]

    def guess(self, predictor: Predictor, age: int) -> HistoryWindow:
        """The present window as predicted ``age`` ticks ago."""
        return predictor(self.windows[-1 - age], age, np.stack(self.actions[-age:]))


def predictors(checkpoint: str) -> dict[str, Predictor]:
    """Ways to guess an observation, the learned one only if the checkpoint has a forward model."""
    found: dict[str, Predictor] = {"last": LastObservation(), "linear": LinearObservation()}
    if forward_model_path(checkpoint).is_file():
        found["learned"] = load_forward_model(checkpoint)
    return found


def moments(policy: DiffusionPolicy, sampler: Any, cfg: Any, count: int, episodes: int) -> list[Moment]:
    """Random ticks of played episodes, at least the largest age after their start."""
    env = MakeEnv(cfg.task.env)()
    found: list[Moment] = []
    choose = np.random.default_rng(SEED)
    with progress_bar("episodes", episodes) as bar:
        for seed in range(SEED, SEED + episodes):
            windows, actions = zip(*_steps(policy, sampler, env, seed), strict=True)
            last = [tick for tick in range(max(AGES), len(windows))]
            some = choose.choice(last, size=min(-(-count // episodes), len(last)), replace=False)
            found += [Moment(windows[tick - max(AGES) : tick + 1], actions[tick - max(AGES) : tick]) for tick in some]
            bar.advance()
    env.close()
    return found[:count]


def _steps(
    policy: DiffusionPolicy, sampler: Any, env: Any, seed: int
) -> Iterator[tuple[HistoryWindow, NDArray[np.float64]]]:
    """The window of every tick, and the action that followed it."""
    history, generator = ObservationHistory(policy.config.n_obs_steps, env.reset(seed=seed)[0]), episode_generator(seed)
    while True:
        observation = {name: part[None] for name, part in history.window().items()}
        for action in policy.predict_action(observation, sampler, [generator]).actions[0]:
            yield history.window(), action
            observed, _, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
            history.add(observed)
            if terminated or truncated or info["success"]:
                return


def batch(windows: Sequence[HistoryWindow]) -> dict[str, Any]:
    """Windows as a policy wants several of them."""
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def streams(count: int) -> list[torch.Generator]:
    """A random stream for each moment, the same for every row of the table."""
    return [torch.Generator().manual_seed(SEED + number) for number in range(count)]


def passes(
    policy: DiffusionPolicy, sampler: Any, found: Sequence[Moment], guessing: Mapping[str, Predictor]
) -> Iterator[dict[str, Any]]:
    """A row without a draft, and one for each predictor and age."""
    now = batch([moment.windows[-1] for moment in found])
    whole = policy.predict_action(now, sampler, streams(len(found)))
    yield _row(whole.result)
    for name, predictor in guessing.items():
        for age in AGES:
            generators = streams(len(found))
            draft = policy.predraft(batch([moment.guess(predictor, age) for moment in found]), sampler, generators)
            yield {
                "predictor": name,
                "age": age,
                **_row(policy.predict_action(now, sampler, generators, predraft=draft).result),
            }


def _row(result: Any) -> dict[str, Any]:
    needed = result.passes.double().numpy()
    replayed = None if result.replayed is None else float(result.replayed.double().mean())
    return {
        "passes": mean_interval(needed)._asdict(),
        "in_one_pass": float((needed == 1).mean()),
        "evaluations": float(result.evaluations.double().mean()),
        "replayed_steps": replayed,
    }


def times(
    policy: DiffusionPolicy,
    samplers: Mapping[str, Any],
    drafting: Sequence[str],
    found: Sequence[Moment],
    predictor: Predictor,
) -> list[dict[str, Any]]:
    """At batch 1, in turns: whole samplers, and what is left of those in ``drafting`` at each age."""
    ways = [*((name, 0) for name in samplers), *((name, age) for name in drafting for age in AGES)]
    taken: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    with progress_bar("timed moments", len(found)) as bar:
        for number, moment in enumerate([found[0], *found]):  # the first one warms up
            now = batch([moment.windows[-1]])
            for name, age in ways:
                generator, draft = torch.Generator().manual_seed(number), None
                if age:
                    guess = batch([moment.guess(predictor, age)])
                    draft = policy.predraft(guess, samplers[name], generator)
                begin = time.perf_counter()
                policy.predict_action(now, samplers[name], generator, predraft=draft)
                if number:
                    taken[name, age].append(time.perf_counter() - begin)
            bar.advance(1 if number else 0)
    return [
        {
            "sampler": name,
            "age": age or None,
            "median_ms": 1e3 * float(np.median(seconds)),
            **{f"times_{few}": ratio_of_medians(seconds, taken[few, 0])._asdict() for few in FEW},
        }
        for (name, age), seconds in taken.items()
    ]


def measure(task: str, names: Sequence[str], count: int, timed: int, episodes: int, out: Path) -> dict[str, Any]:
    """All rows of one task, written as they come."""
    configs = {name: compose("control", [f"task={task}", f"sampler={name}"]) for name in [*names, *FEW]}
    cfg = configs[names[0]]
    makers = {name: instantiate(each.sampler) for name, each in configs.items()}
    policy, made, _ = CheckpointLoader(str(cfg.checkpoint), task, makers)()
    assert isinstance(policy, DiffusionPolicy)
    samplers = dict(made)
    found = moments(policy, samplers["ddim10"], cfg, count, episodes)
    guessing = predictors(str(cfg.checkpoint))
    results: dict[str, Any] = {
        "question": (__doc__ or "").partition("\n")[0],
        "task": task,
        "control_hz": cfg.task.control_hz,
        "n": len(found),
        "timed": min(timed, len(found)),
        "threads": torch.get_num_threads(),
        "rows": [],
        "provenance": collect_provenance(str(cfg.checkpoint), []),
    }
    for name in names:
        for row in passes(policy, samplers[name], found, guessing):
            results["rows"].append({"sampler": name, **row})
            write(out, results)
    timed_with = list(guessing)[-1]
    results["timed_with"] = timed_with
    results["times"] = times(policy, samplers, names, found[:timed], guessing[timed_with])
    write(out, results)
    return results


def write(out: Path, results: Mapping[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def overview(folder: Path) -> str:
    """All measured tasks as one markdown table; times stand with the predictor that they were measured with."""
    head = ["task", "sampler", "predictor", "no draft", *(f"{age} tick{'s' * (age > 1)} old" for age in AGES)]
    head += ["time, 1 tick old, × ddim10", "× ddim5"]
    lines = [head, ["---", "---", "---", *["---:"] * (len(head) - 3)]]
    counts = set()
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        counts.add(results["n"])
        for sampler in dict.fromkeys(row["sampler"] for row in results["rows"]):
            mine = [row for row in results["rows"] if row["sampler"] == sampler]
            timed = next(  # times come last: an interrupted run has none
                (row for row in results.get("times", ()) if (row["sampler"], row["age"]) == (sampler, 1)), None
            )
            for predictor in dict.fromkeys(row["predictor"] for row in mine if row.get("predictor", "last") != "last"):
                shown = [row for row in mine if row.get("predictor", predictor) == predictor]
                cells = [f"{row['passes']['value']:.1f}" for row in shown]
                mine_timed = timed is not None and results.get("timed_with", "linear") == predictor
                cells += [_interval(timed[f"times_{few}"]) if mine_timed else "" for few in FEW]
                lines.append([results["task"], f"`{sampler}`", predictor, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    moments_seen = " or ".join(map(str, sorted(counts)))
    return (
        f"{table}\n\nNFE after the observation, means over {moments_seen} moments of played episodes, when the "
        "draft was made under what a predictor made of an observation so many ticks old (the last value is "
        "worse than linear up to 4 ticks everywhere, and left out here); then the "
        "time from observation to actions at batch 1 against few-step DDIM in the same run, with 95 % intervals. All "
        "samplers are exact, for the 100-step chain or (20) the 20-step one; DDIM is not.\n"
    )


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def show(results: Mapping[str, Any]) -> None:
    """NFE after the observation, by age of what was drafted under."""
    table = Table(title=f"{results['task']}: NFE after the observation (one is enough), n = {results['n']}")
    for name in ("sampler", "predictor", "no draft", *(f"{age} ticks" for age in AGES)):
        table.add_column(name, overflow="fold")
    for sampler in dict.fromkeys(row["sampler"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["sampler"] == sampler]
        for predictor in dict.fromkeys(row["predictor"] for row in mine if "predictor" in row):
            drafted = [row for row in mine if row.get("predictor") == predictor]
            cells = [f"{row['passes']['value']:.1f} ({100 * row['in_one_pass']:.0f} %)" for row in drafted]
            table.add_row(sampler, predictor, f"{mine[0]['passes']['value']:.1f}", *cells)
    console = Console()
    console.print(table)
    for row in results["times"]:
        age = f"draft {row['age']} ticks old" if row["age"] else "whole"
        ratio = row["times_ddim5"]
        console.print(
            f"{row['sampler']:>16} {age:>20}: {ratio['value']:.2f} × ddim5 [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--samplers", nargs="+", default=["free_block", "free_block20"])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--timed", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()
    for task in options.tasks:
        out = RESULTS / f"{task}.json"
        show(measure(task, options.samplers, options.moments, options.timed, options.episodes, out))
        with atomic_path(RESULTS / "table.md") as path:
            path.write_text(overview(RESULTS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
