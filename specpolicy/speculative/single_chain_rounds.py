"""One chain on a CPU: the rounds of :mod:`~specpolicy.speculative.round` in NumPy and float64.

A round of one chain needs no padding, no masks and no gathering. Drafts, verification and repairs are those of the
batched rounds, drawn from the same random numbers.

There are two forms of a round because one chain on a CPU is what a robot waits for: with the network on OpenVINO,
calls on small arrays took a third of a chunk's time in the batched rounds, and take about half of that here (20 steps,
U-Net of the Square policy; ``benchmarks/bench_backends.py`` measures it). Verifiers are the same objects, and tests
bind the two: equal random numbers give equal chains, rounds and counts to 1e-9 for every drafter, verifier and initial
guess (``test_single_chain``). Batches, GPUs, adaptive windows, drafters of one's own and compiled samplers take the
batched form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser, raw_condition
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.drafters.constant import FreeDrafter, FrozenDrafter
from specpolicy.speculative.drafters.linear import LinearDrafter, X0Jacobian
from specpolicy.speculative.drafters.recycling import RecyclingDrafter
from specpolicy.speculative.inputs import state_dtype
from specpolicy.speculative.linear_chain import MultiStepTransition
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import X0_BOUND, SpeculativeRound
from specpolicy.speculative.single_chain import Array, HostNetwork, HostProcess, as_array, as_events
from specpolicy.speculative.verifiers import DraftTargetGap, ReflectionVerifier, Rejection, StepwiseVerifier, Verifier

_RESPONSE_BOUND = 1e4
_EQUAL, _FAR, _TINY = 1e-9, 1e6, 1e-300
_UNSCALED = torch.zeros(1, dtype=torch.float64)
_DRAFTERS = (FreeDrafter, FrozenDrafter, LinearDrafter, RecyclingDrafter)


class _Window(NamedTuple):
    """A drafted window: states ``(w + 1, d)``, the x̂0 ``(w, d)`` and noises ``(w, d)`` that made them."""

    states: Array
    x0: Array
    noise: Array


class _Tail(NamedTuple):
    """What the last round evaluated and did not reach; as :class:`UnverifiedTail`, without padding."""

    states: Array
    drafted_x0: Array
    target_x0: Array
    noise: Array


@dataclass
class _Progress:
    """Where the chain is, its last evaluation, and the log of its rounds."""

    k: int
    x: Array
    size: float = 1.0
    last_eval_k: int = -1
    last_eval_x: Array = field(default_factory=lambda: np.zeros(0))
    last_eval_x0: Array = field(default_factory=lambda: np.zeros(0))
    tail: _Tail | None = None
    log: list[tuple[int, int, int]] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    x0: list[Array] = field(default_factory=list)


class SingleChainRounds:
    """The rounds of a speculative sampler for one chain on a CPU.

    Args:
        rounds: of the sampler; its drafter is one of this library's, see :meth:`takes`.
        table: steps to draft from each position.
    """

    def __init__(self, rounds: SpeculativeRound, table: Tensor) -> None:
        self.rounds, self.table = rounds, table.tolist()
        process, drafter = rounds.process, rounds.drafter
        self._chain = HostProcess(process)
        moves = MultiStepTransition(process)
        self._products, self._drifts = as_array(moves.products), as_array(moves.drifts)
        sigma = self._chain.sigma
        self._gain = np.where(sigma > 0, self._chain.b / np.where(sigma > 0, sigma, 1.0), 0.0)
        self._trust = drafter.trust if isinstance(drafter, RecyclingDrafter) else 0.0
        jacobian = getattr(drafter, "jacobian", None)
        self._jacobian = None if jacobian is None else _Jacobian(jacobian, self._chain)

    @staticmethod
    def takes(drafter: Drafter) -> bool:
        """Tell whether the rounds of a drafter are known here: exactly this library's own."""
        return type(drafter) in _DRAFTERS

    def sample(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond,
        random: ChainGenerators,
        record: bool = False,
        predraft: PreDraft | None = None,
        replayed: int = 0,
    ) -> SampleResult:
        """Sample the chain; as :meth:`StepwiseChain.sample`, and with a pre-draft.

        Args:
            denoiser: the network.
            noise: its start, shape ``(1, *event)``.
            cond: its condition.
            random: its random numbers.
            record: keep all states and x̂0.
            predraft: a chain drafted under another condition.
            replayed: how many of its steps to verify in the first evaluation; 0 for none.
        """
        network = HostNetwork(self._chain, denoiser, noise, cond)
        at = _Progress(0, as_array(noise).reshape(-1))
        if predraft is not None and replayed:
            self._replay(at, predraft, replayed, network, random)
        drafter, guess = self.rounds.drafter, self.rounds.initial_guess
        while at.k < self._chain.num_steps:
            start_known = drafter.refreshes if at.log else guess is None
            if start_known:
                at.last_eval_k, at.last_eval_x, at.last_eval_x0 = at.k, at.x, network.x0(at.x[None], at.k)[0]
            elif not at.log:
                self._guess(at, noise, cond)
            length, event = self.table[at.k], noise.shape[1:]
            drawn = as_array(random.window_noise([length], event, [0])[0]).reshape(-1, at.x.size)[:length]
            uniform, fresh = random.window_uniform([length], [0]), as_array(random.noise(event, [0])).reshape(-1)
            self._verify(at, *self._draft(at, drawn), network, uniform, fresh, start_known)
        return self._result(at, noise, network, record, predraft is not None and replayed > 0)

    def _guess(self, at: _Progress, noise: Tensor, cond: Cond) -> None:
        guess = self.rounds.initial_guess
        if guess is None:
            raise RuntimeError("nothing to draft the first window from")
        x0 = as_array(guess.x0(noise.to(state_dtype(noise)), raw_condition(cond))).reshape(-1)
        if not _largest(x0) <= _RESPONSE_BOUND * max(1.0, _largest(at.x)):
            x0 = np.zeros_like(x0)
        at.last_eval_k, at.last_eval_x, at.last_eval_x0 = at.k, at.x, x0

    def _replay(
        self, at: _Progress, predraft: PreDraft, steps: int, network: HostNetwork, random: ChainGenerators
    ) -> None:
        uniform, event = random.window_uniform([steps], [0]), predraft.start.shape[1:]
        fresh = as_array(random.noise(event, [0])).reshape(-1)
        parts = (predraft.states[: steps + 1], predraft.x0[:steps], predraft.noise[:steps])
        states, x0, noise = (as_array(part).reshape(len(part), -1) for part in parts)
        self._verify(at, _Window(states, x0, noise), steps, network, uniform, fresh, False)

    # Drafts: as of the recycling drafter, of which the others are special cases.

    def _draft(self, at: _Progress, noise: Array) -> tuple[_Window, int]:
        """A window, and how many of its steps count."""
        window, tail = len(noise), at.tail
        at.size, turn = max(1.0, _largest(at.x)), -1
        if tail is not None:
            kept = min(len(tail.noise), window)
            noise[:kept] = tail.noise[:kept]
            turn = kept
        drafted = self._along(at, noise, turn)
        if tail is not None and window:
            columns = min(turn, window - 1) + 1
            trusted = self._trusted(at, drafted, tail, columns)
            if trusted < columns:
                drafted = self._along(at, noise, trusted - 1)
        bound = X0_BOUND * at.size
        if window and not _largest(drafted.x0) <= bound:
            sound = np.abs(drafted.x0).max(axis=1) <= bound
            return drafted, int(sound.argmin())
        return drafted, window

    def _trusted(self, at: _Progress, drafted: _Window, tail: _Tail, columns: int) -> int:
        """In how many columns, one after another, the draft is near the old path."""
        states = drafted.states[:columns]
        away = states - self._means(at, columns)
        near = _norms(states - tail.states[:columns]) <= self._trust * _norms(away)
        return columns if near.all() else int(near.argmin())

    def _means(self, at: _Progress, columns: int) -> Array:
        """Mean path since the last evaluation, at the positions from ``k`` on."""
        ahead = slice(at.k, at.k + columns)
        mean = self._products[at.last_eval_k, ahead, None] * at.last_eval_x
        mean += self._drifts[at.last_eval_k, ahead, None] * at.last_eval_x0
        return mean

    def _along(self, at: _Progress, noise: Array, turn: int) -> _Window:
        """Draft along the old path up to column ``turn`` (−1: not at all), and from the last x̂0 on after it."""
        window, k, tail, chain = len(noise), at.k, at.tail, self._chain
        x0 = np.empty_like(noise)
        known = min(turn + 1, window)
        if tail is None or turn < 0:
            x0[:] = at.last_eval_x0
        else:
            x0[:known] = tail.target_x0[:known]
            x0[known:] = tail.target_x0[turn]
        if self._jacobian is not None and window:
            response = self._jacobian.expand(self._answers(at, noise, turn, known))
            bound = _RESPONSE_BOUND * at.size
            if not _largest(response) <= bound:
                response[~(np.abs(response).max(axis=1) <= bound)] = 0.0
            x0 += response
        moved = chain.b[k : k + window] * x0
        moved += chain.sigma[k : k + window] * noise
        states = self._products[k + 1 : k + window + 1, k : k + window + 1].T @ moved
        states += self._products[k, k : k + window + 1, None] * at.x
        return _Window(states, x0, noise)

    def _answers(self, at: _Progress, noise: Array, turn: int, known: int) -> Array:
        """J (x − where x̂0 is measured from) at each step, in the Jacobian's basis."""
        window, k, tail, chain, jacobian = len(noise), at.k, at.tail, self._chain, self._jacobian
        assert jacobian is not None
        values = jacobian.values[k : k + window]
        if tail is None or turn < 0:
            start = jacobian.project(at.x - self._means(at, 1)[0])
            kicks = chain.sigma[k : k + window - 1] * jacobian.project(noise[: window - 1])
            return values * jacobian.scan(start, kicks, k)
        errors = jacobian.project(tail.target_x0[: known - 1] - tail.drafted_x0[: known - 1])
        errors *= chain.b[k : k + known - 1]
        first = values[:known] * jacobian.scan(jacobian.project(at.x - tail.states[0]), errors, k)
        if known >= window:
            return first
        kicks = chain.sigma[k + turn : k + window - 1] * jacobian.project(noise[turn : window - 1])
        second = values[known:] * jacobian.scan(kicks[0], kicks[1:], k + known)
        return np.concatenate([first, second + first[turn]])

    # Verification: the decisions of SpeculativeRound.verify for one chain.

    def _verify(
        self,
        at: _Progress,
        drafted: _Window,
        length: int,
        network: HostNetwork,
        uniform: Tensor,
        fresh: Array,
        start_known: bool,
    ) -> None:
        k, chain, first = at.k, self._chain, int(start_known)
        states = drafted.states[: length + 1]
        target = np.empty_like(states)
        if first:
            target[0] = at.last_eval_x0
        if length + 1 > first:
            target[first:] = network.x0(states[first:], k + first)
        accepted, last_noise = self._judge(k, drafted, target, length, uniform, fresh) if length else (0, fresh)
        end = k + accepted
        at.last_eval_k, at.last_eval_x, at.last_eval_x0 = end, states[accepted], target[accepted]
        if self.rounds.drafter.recycles:
            beyond = slice(accepted + 1, length)
            at.tail = None
            if accepted < length:
                states_left, target_left = states[accepted + 1 :], target[accepted + 1 :]
                at.tail = _Tail(states_left, drafted.x0[beyond], target_left, drafted.noise[beyond])
        at.states.append(states[: accepted + 1])
        at.x0.append(target[: accepted + 1])
        at.log.append((k, length, accepted))
        at.x = chain.step(states[accepted], target[accepted], end, last_noise)
        at.k = end + 1

    def _judge(
        self, k: int, drafted: _Window, target: Array, length: int, uniform: Tensor, fresh: Array
    ) -> tuple[int, Array]:
        """How many steps are kept, and the noise of the step after them."""
        verifier, noise = self.rounds.verifier, drafted.noise[:length]
        gap = drafted.x0[:length] - target[:length]
        gap *= self._gain[k : k + length]
        square, dot = np.einsum("ij,ij->i", gap, gap), np.einsum("ij,ij->i", gap, noise)
        log_scale = _UNSCALED
        if type(verifier).judge is StepwiseVerifier.judge:
            # ln(target/draft) = −v (e·ξ) − v²/2, and v (e·ξ) is the product of gap and noise itself.
            kept = np.log(np.maximum(uniform[0, :length].numpy(), _TINY)) <= -dot - square / 2
            kept |= square <= _EQUAL**2
            accepted = length if kept.all() else int(kept.argmin())
        else:
            distances = np.where(square > _EQUAL**2, np.minimum(np.sqrt(square), _FAR), 0.0)
            components = np.where(distances > 0, dot / np.maximum(np.sqrt(square), _EQUAL), 0.0)
            gaps = torch.from_numpy(distances)[None], torch.from_numpy(components)[None], torch.tensor([length])
            verdict = verifier.judge(DraftTargetGap(*gaps), uniform[:, :length])
            accepted, log_scale = int(verdict.accepted), verdict.log_scale
        if accepted == length:
            return accepted, fresh
        distance = math.sqrt(square[accepted])
        line = gap[accepted] / max(distance, 1e-300)
        along = float(dot[accepted]) / max(distance, _EQUAL) if distance > _EQUAL else 0.0
        distance = min(distance, _FAR) if distance > _EQUAL else 0.0
        coordinate = _repaired(verifier, distance, along, log_scale, uniform[:, -1])
        base = noise[accepted] if verifier.causal else fresh
        return accepted, base + (coordinate - float(base @ line)) * line

    def _result(self, at: _Progress, noise: Tensor, network: HostNetwork, record: bool, replayed: bool) -> SampleResult:
        event, dtype = noise.shape[1:], state_dtype(noise)
        log = torch.tensor(at.log)[:, :, None]
        return SampleResult.of_rounds(
            self._chain.num_steps,
            torch.tensor([at.k]),
            sample=as_events(at.x[None], noise.dtype, event),
            passes=torch.tensor([network.passes]),
            evaluations=torch.tensor([network.rows]),
            start=log[:, 0],
            proposed=log[:, 1],
            accepted=log[:, 2],
            replayed=log[0, 2].clone() if replayed else None,
            trajectory=as_events(np.concatenate([*at.states, at.x[None]]), dtype, event)[:, None] if record else None,
            x0=as_events(np.concatenate(at.x0), dtype, event)[:, None] if record else None,
        )


class _Jacobian:
    """A Jacobian in NumPy, with the products that a parallel scan of the chain takes."""

    def __init__(self, jacobian: X0Jacobian, chain: HostProcess) -> None:
        self.values = as_array(jacobian.values)
        self._basis = None if jacobian.basis is None else as_array(jacobian.basis)
        scale = chain.a + chain.b * self.values
        self._scales = [scale]  # products of 1, 2, 4, … steps that end at each position
        reach = 1
        with np.errstate(over="ignore", invalid="ignore"):  # a Jacobian without bounds: its drafts are left out
            while 2 * reach <= len(scale):
                last = self._scales[-1]
                self._scales.append(np.concatenate([last[:reach], last[reach:] * last[:-reach]]))
                reach *= 2

    def project(self, vectors: Array) -> Array:
        """Coordinates in the basis."""
        return vectors.copy() if self._basis is None else vectors @ self._basis

    def expand(self, coordinates: Array) -> Array:
        """Vectors from coordinates."""
        return coordinates if self._basis is None else coordinates @ self._basis.T

    def scan(self, start: Array, kicks: Array, k: int) -> Array:
        """c_0 = start, c_{j+1} = scale_{k+j} c_j + kick_j, as :func:`affine_scan`; one row more than kicks."""
        found = np.empty((len(kicks) + 1, start.size))
        found[0], found[1:] = start, kicks
        reach, level = 1, 0
        # Row j holds what the last ``reach`` steps have added; the start counts as the first kick.
        while reach < len(found):
            found[reach:] += self._scales[level][k + reach - 1 : k + len(kicks)] * found[:-reach]
            reach, level = 2 * reach, level + 1
        return found


def _repaired(verifier: Verifier, distance: float, along: float, log_scale: Tensor, uniform: Tensor) -> float:
    if type(verifier) is ReflectionVerifier:
        return -along
    v, xi = (torch.tensor([each], dtype=torch.float64) for each in (distance, along))
    return float(verifier.repair(Rejection(v, xi, log_scale, uniform)))


def _norms(rows: Array) -> Array:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def _largest(values: Array) -> float:
    """The largest magnitude; NaN if there is one."""
    return float(max(values.max(), -values.min()))
