"""Fine-tune a diffusion policy by reinforcement learning over its denoising steps (DPPO), in one file.

    python examples/finetune_square.py --out runs/finetune-square
    python examples/finetune_square.py --task pusht --envs 16 --iterations 50 --out runs/finetune-pusht

Every denoising step is an action with a Gaussian density, and PPO's clipped objective is taken over these (Ren et al.
2024, arXiv 2409.00588). That needs whole chains of the policy and their probabilities: few-step DDIM has none, and an
exact speculative sampler hands over what the sequential one would, in fewer network evaluations. ``--sampler
sequential`` is there to compare. Stop at any time; the same command goes on. ``OUT/policy`` is a checkpoint for
``specpolicy evaluate``, ``OUT/curve.json`` the learning curve.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import specpolicy
from specpolicy import RecyclingDrafter, ReflectionVerifier, ReverseProcess, SequentialSampler, SpeculativeSampler
from specpolicy.config import compose
from specpolicy.control import Lockstep
from specpolicy.control.inference import InferenceRequest, InferenceResult, episode_generator
from specpolicy.control.latency import Constant
from specpolicy.control.trace import EpisodeTrace
from specpolicy.policies.diffusion_policy import DiffusionPolicy, draw_noise
from specpolicy.rollout.env_worker import EnvPool, EnvWorker, MakeEnv, ResetRequest, WorkerConfig
from specpolicy.rollout.episodes import EpisodeKey
from specpolicy.speculative.log_prob import chain_log_prob
from specpolicy.utils.files import atomic_path

TRAINING_SEEDS, EVALUATION_SEEDS = 500_000, 100_000  # initial states; far from those of demonstrations


@dataclass(frozen=True)
class Settings:
    """What a run is; all but the number of iterations must stay the same to go on with it."""

    task: str = "square"
    checkpoint: str = ""  # the task's shipped one
    iterations: int = 100
    envs: int = 16
    episodes: int = 16  # of one iteration
    max_ticks: int = 0  # 0: the environment's own limit
    steps: int = 20  # K of the chain that is sampled and fine-tuned
    finetuned: int = 10  # its last steps; the noisier ones are left as they are
    sigma: float = 0.05  # least noise of a step in training, of actions in [-1, 1]: exploration
    sampler: str = "speculative"  # or sequential: the same distribution
    window: int = 6
    epochs: int = 4
    minibatch: int = 512  # chunks, each with all fine-tuned steps; small ones follow their own noise
    actor_rate: float = 1e-5
    critic_rate: float = 1e-3
    critic_warm_up: int = 3  # iterations in which the critic alone learns
    discount: float = 0.99  # a chunk
    gae: float = 0.95
    denoising_discount: float = 0.99  # a denoising step, backwards from the sample
    clip: float = 0.02  # of the ratio for one coordinate of a chunk, a geometric mean
    kl: float = 0.5  # of a denoising step of a whole chunk, nats; a minibatch beyond it ends the iteration
    evaluate_every: int = 10  # iterations; 0 for never
    evaluation_episodes: int = 20
    seed: int = 0
    in_process: bool = False  # environments in this process: for cheap ones


@dataclass
class Episode:
    """One episode: for each chunk its condition, its chain, and the chain's log-probability when it was sampled."""

    worker: EnvWorker
    generator: torch.Generator
    cond: list[Tensor] = field(default_factory=list)  # (cond,)
    chain: list[Tensor] = field(default_factory=list)  # (K + 1, *event)
    log_prob: list[Tensor] = field(default_factory=list)  # (J,), of steps with noise
    passes: list[int] = field(default_factory=list)
    trace: EpisodeTrace | None = None

    @property
    def rewards(self) -> Tensor:
        """Sum of rewards while each chunk was played, shape ``(chunks,)``."""
        assert self.trace is not None
        begins = np.array([each.tick for each in self.trace.inferences])
        sums = torch.zeros(len(begins))
        for row in self.trace.ticks:
            sums[int(np.searchsorted(begins, row.tick, side="right")) - 1] += row.reward
        return sums


def make_sampler(settings: Settings, process: ReverseProcess) -> SequentialSampler | SpeculativeSampler:
    """Two samplers of one distribution. Drafts need no calibration, which would not be of the new weights."""
    if settings.sampler == "sequential":
        return SequentialSampler(process)
    return SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), settings.window)


def play(
    policy: DiffusionPolicy, sampler: Any, process: ReverseProcess, pool: EnvPool, seeds: Iterable[int], stream: int
) -> Iterator[Episode]:
    """Play episodes side by side, all chains that are wanted at one time in one batch; hand out those that ended."""
    waiting, free, running = deque(seeds), deque(pool.workers), list[Episode]()
    executor = Lockstep(policy.config.n_action_steps)
    while waiting or running:
        while waiting and free:
            seed, worker = waiting.popleft(), free.popleft()
            worker.send(ResetRequest(executor, Constant(0.0), EpisodeKey("", seed, stream)))
            running.append(Episode(worker, episode_generator(seed, stream)))
        asking: list[tuple[Episode, InferenceRequest]] = []
        for episode in list(running):
            reply = episode.worker.receive()
            if isinstance(reply, InferenceRequest):
                asking.append((episode, reply))
                continue
            running.remove(episode)
            free.append(episode.worker)
            if isinstance(reply, EpisodeTrace):
                episode.trace = reply
                yield episode
            else:
                print(f"an episode crashed and is left out: {reply.error}", file=sys.stderr)
        if asking:
            _answer(policy, sampler, process, asking)


@torch.no_grad()
def _answer(
    policy: DiffusionPolicy, sampler: Any, process: ReverseProcess, asking: Sequence[tuple[Episode, InferenceRequest]]
) -> None:
    """Sample a chunk for each, keep its chain, and send its actions."""
    windows = [request.window for _, request in asking]
    cond = policy.encode({name: np.stack([window[name] for window in windows]) for name in windows[0]})
    generators = [episode.generator for episode, _ in asking]
    noise = draw_noise((len(cond), *policy.event_shape), generators, policy.device)
    result = sampler(policy, noise, cond=cond, generator=generators, record=True)
    log_prob = result.log_prob(process).transitions
    actions = policy.decode(result.sample)[:, policy.config.first_executed :].astype(np.float64)
    for row, (episode, _) in enumerate(asking):
        episode.cond.append(cond[row])
        episode.chain.append(result.trajectory[:, row])
        episode.log_prob.append(log_prob[:, row])
        episode.passes.append(int(result.passes[row]))
        episode.worker.send(InferenceResult(actions[row], int(result.passes[row]), int(result.evaluations[row])))


def advantages(rewards: Tensor, values: Tensor, discount: float, gae: float) -> Tensor:
    """Generalized advantage estimation over the chunks of one episode, after which there is no reward."""
    found, last = torch.zeros_like(rewards), 0.0
    for i in reversed(range(len(rewards))):
        following = float(values[i + 1]) if i + 1 < len(rewards) else 0.0
        last = float(rewards[i]) + discount * following - float(values[i]) + discount * gae * last
        found[i] = last
    return found


class Trainer:
    """Policy, critic, optimizers and the learning curve so far; kept in ``out`` after each iteration."""

    def __init__(self, settings: Settings, out: Path) -> None:
        if not 1 <= settings.finetuned <= settings.steps or settings.sigma <= 0:
            raise SystemExit("--finetuned must be 1 to --steps; --sigma above 0, or the last step has no density")
        torch.manual_seed(settings.seed)
        self.settings, self.out, self.iteration, self.curve = settings, out, 0, list[dict[str, Any]]()
        task = compose("rollout", [f"task={settings.task}"])
        self.policy = specpolicy.load_policy(settings.checkpoint or task.checkpoint)
        self.policy.network.requires_grad_(True)  # image encoders stay as they are
        self.process = specpolicy.samplers.make_process(self.policy, settings.steps)
        # More noise in the last steps than the policy was trained for: without noise there is nothing to reinforce.
        self.exploring = replace(self.process, sigma=self.process.sigma.clamp(min=settings.sigma))
        width = self.policy.observations.dim * self.policy.observations.horizon
        self.critic = nn.Sequential(
            nn.Linear(width, 256), nn.Mish(), nn.Linear(256, 256), nn.Mish(), nn.Linear(256, 1), nn.Flatten(0)
        )
        self.actor_optimizer = torch.optim.AdamW(self.policy.network.parameters(), settings.actor_rate, weight_decay=0)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), settings.critic_rate, weight_decay=0)
        self.worker = WorkerConfig(
            MakeEnv(task.task.env), self.policy.config.n_obs_steps, max_ticks=settings.max_ticks or None
        )
        self._resume()

    def run(self) -> None:
        """Collect, learn, evaluate, save."""
        settings = self.settings
        with EnvPool(self.worker, settings.envs, in_process=settings.in_process) as pool:
            if not self.curve and settings.evaluate_every:
                self._save({"iteration": 0, **self.evaluate(pool)})
            while self.iteration < settings.iterations:
                begun = time.process_time()
                first = TRAINING_SEEDS + self.iteration * settings.episodes
                seeds = range(first, first + settings.episodes)
                sampler = make_sampler(settings, self.exploring)
                episodes = list(play(self.policy, sampler, self.exploring, pool, seeds, settings.seed))
                collected = time.process_time()
                learned = self.learn(episodes)
                self.iteration += 1
                line = {"iteration": self.iteration, **summary(episodes, "training"), **learned}
                line |= {"collecting_cpu_s": collected - begun, "learning_cpu_s": time.process_time() - collected}
                if settings.evaluate_every and self.iteration % settings.evaluate_every == 0:
                    line |= self.evaluate(pool)
                self._save(line)

    def evaluate(self, pool: EnvPool) -> dict[str, float]:
        """Play with the chain's own noise, on the same initial states every time."""
        seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + self.settings.evaluation_episodes)
        sampler = make_sampler(self.settings, self.process)
        return summary(list(play(self.policy, sampler, self.process, pool, seeds, 0)), "evaluation")

    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """PPO over the last denoising steps of every chunk; the critic sees the observation alone."""
        settings = self.settings
        cond = torch.stack([each for episode in episodes for each in episode.cond])
        chain = torch.stack([each for episode in episodes for each in episode.chain], dim=1)
        old = torch.stack([each for episode in episodes for each in episode.log_prob], dim=1)
        with torch.no_grad():
            parts = [(each.rewards, self.critic(torch.stack(each.cond))) for each in episodes]
        gains = [advantages(*part, settings.discount, settings.gae) for part in parts]
        returns = torch.cat([gain + values for gain, (_, values) in zip(gains, parts, strict=True)])
        advantage = torch.cat(gains)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        steps = torch.arange(settings.steps - settings.finetuned, settings.steps)
        weight = settings.denoising_discount ** (settings.steps - 1 - steps.double())[:, None]
        size = chain[0, 0].numel()  # ratios are of one coordinate, a geometric mean, as DPPO's
        clipped, kl, losses = [0.0], 0.0, []
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(cond)).split(settings.minibatch):
                loss = (self.critic(cond[rows]) - returns[rows]).square().mean()
                losses.append(float(loss.detach()))
                _step(self.critic_optimizer, loss)
                if self.iteration < settings.critic_warm_up or kl > settings.kl:
                    continue
                found = chain_log_prob(self.exploring, self.policy, chain[:, rows], cond[rows], steps)
                change = found.transitions - old[steps][:, rows]
                kl = float(change.detach().square().mean()) / 2  # to second order
                ratio = (change / size).exp()
                within = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                gain = weight * advantage[rows].double()
                _step(self.actor_optimizer, -torch.minimum(ratio * gain, within * gain).mean())
                clipped.append(float((ratio != within).double().mean()))
        return {"critic_loss": float(np.mean(losses)), "kl": kl, "clipped": float(np.mean(clipped))}

    def _save(self, line: dict[str, Any]) -> None:
        self.curve.append(line)
        print(json.dumps(line), flush=True)
        self.policy.save_pretrained(self.out / "policy")
        modules = {name: getattr(self, name).state_dict() for name in self._modules}
        state = {"settings": asdict(self.settings), "iteration": self.iteration, "curve": self.curve}
        with atomic_path(self.out / "state.pt") as temporary:
            torch.save({**state, **modules, "random": torch.get_rng_state()}, temporary)
        with atomic_path(self.out / "curve.json") as temporary:
            temporary.write_text(json.dumps({"settings": state["settings"], "curve": self.curve}, indent=1) + "\n")

    _modules = ("policy", "critic", "actor_optimizer", "critic_optimizer")

    def _resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        mine = asdict(self.settings)
        other = [name for name in mine if name != "iterations" and state["settings"].get(name) != mine[name]]
        if other:
            raise SystemExit(f"{path} was made with other settings ({', '.join(other)}); take another --out")
        for name in self._modules:
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.iteration, self.curve = state["iteration"], state["curve"]


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def summary(episodes: Sequence[Episode], name: str) -> dict[str, float]:
    """Mean return with its standard error, successes, and network evaluations a chunk."""
    returns = np.array([float(each.rewards.sum()) for each in episodes])
    traces = [each.trace for each in episodes if each.trace is not None]
    return {
        f"{name}_return": float(returns.mean()),
        f"{name}_error": float(returns.std(ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else 0.0,
        f"{name}_successes": sum(trace.success for trace in traces),
        f"{name}_episodes": len(traces),
        f"{name}_nfe": float(np.mean([count for each in episodes for count in each.passes])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    for option in fields(Settings):
        default = option.default
        if isinstance(default, bool):
            parser.add_argument(f"--{option.name}", action="store_true")
        else:
            parser.add_argument(f"--{option.name}", type=type(default), default=default)
    given = vars(parser.parse_args())
    out = given.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    Trainer(Settings(**given), out).run()


if __name__ == "__main__":
    main()
