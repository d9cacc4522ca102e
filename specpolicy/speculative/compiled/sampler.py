"""The speculative sampler with compiled or captured rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser import Cond, Denoiser, DenoiserError, check_cond, state_dtype
from ..drafters import Draft
from ..linear_chain import LinearChain
from ..predraft import PreDraft
from ..randomness import RandomSource
from ..result import SampleResult
from ..sampler import Generators, SpeculativeSampler
from ..window import AdaptiveWindow
from .filling import check_sizes, filled, padded
from .round import StaticRounds
from .runners import Backend, Runner, make_runner
from .state import Draws, RoundState


class CompiledSampler:
    """A :class:`SpeculativeSampler` whose rounds are compiled or captured: same call, same law.

    On a CPU, and wherever ``widths`` has more than one entry, the host reads the chains' positions before each round
    and draws exactly the numbers that the sampler itself would draw: equal seeds give equal samples, up to the rounding
    of arithmetic in another order. With one width the rounds that the batch needs at least are queued without a look,
    from numbers for the full width.

    The first call for each shape compiles or captures and takes seconds to a minute: make one before anything counts
    (:meth:`warm_up`).

    Args:
        sampler: what to sample; its window must not be adaptive.
        backend: see :data:`Backend`. None: ``graph+inductor`` for noise on CUDA, ``inductor`` elsewhere.
        widths: window lengths to prepare, rising; a round takes the least that is enough. None: the longest window on
            CUDA, where rows cost little, and its half and quarter besides elsewhere.
        batches: batch sizes to prepare, rising. A batch takes the least that holds it, and is filled up with chains
            that count as finished; what is drawn for the others does not depend on it. None, and batches larger than
            the last: as they come, each size prepared when it is first seen.

    Raises:
        ValueError: an adaptive window, widths that do not hold the longest window, batches that do not rise, or an
            unknown backend.
    """

    def __init__(
        self,
        sampler: SpeculativeSampler,
        backend: Backend | None = None,
        widths: Sequence[int] | None = None,
        batches: Sequence[int] | None = None,
    ) -> None:
        if isinstance(sampler.window, AdaptiveWindow):
            raise ValueError(
                "an adaptive window changes its length from round to round, and compiled rounds have fixed shapes: "
                "take a number of steps, or one for each position"
            )
        self.sampler, self.process, self.exact = sampler, sampler.process, sampler.exact
        self._longest = max(1, int(sampler.table.max()))
        if widths is not None and (list(widths) != sorted(set(widths)) or widths[-1] < self._longest or widths[0] < 1):
            raise ValueError(f"widths={list(widths)}; expected rising lengths, the last at least {self._longest}")
        self.backend, self.widths = backend, None if widths is None else list(widths)
        self.batches = check_sizes(batches)
        # Replays are as long as they are; what they leave is cut to the windows that may draft with it.
        self._recycled = self._longest if sampler.drafter.recycles else None
        self._prepared: dict[tuple[int, torch.device, torch.dtype], tuple[StaticRounds, Runner[RoundState]]] = {}
        if backend is not None:
            make_runner(backend)  # says now what is wrong with it

    def __repr__(self) -> str:
        return f"CompiledSampler({self.sampler!r}, backend={self.backend!r})"

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; arguments and errors as in :class:`SpeculativeSampler`."""
        check_cond(cond, len(noise))
        if predraft is not None:
            predraft.check(noise, self.process)
        chains, dtype = len(noise), state_dtype(noise)
        random = RandomSource(generator, chains, noise.device, dtype)
        noise, cond = filled(noise, cond, self.batches)
        rounds, runner, widths = self.prepare(denoiser, noise, cond)
        runner.start(self._begin(noise, record, chains), cond)
        replays = predraft is not None and self.sampler.replayed > 0
        if predraft is not None and replays:
            state = runner.apply(rounds.replay, _replayed(predraft, self.sampler.replayed, random, len(noise)))
        else:
            state = runner.apply(rounds.begin, None)
        if len(widths) == 1:
            ahead = self.process.num_steps - (self.sampler.replayed + 1 if replays else 0)
            for _ in range(math.ceil(ahead / (widths[0] + 1))):
                state = runner.apply(rounds.advance, full_draws(random, widths[0], noise))
        while True:
            position = state.k.tolist()
            active = [chain for chain, k in enumerate(position) if k < self.process.num_steps]
            if not active:
                break
            lengths = [int(self.sampler.table[position[chain]]) for chain in active]
            width = next(width for width in widths if width >= max(lengths))
            draws = (
                full_draws(random, width, noise)
                if len(widths) == 1
                else _exact_draws(random, width, noise, active, lengths)
            )
            state = runner.apply(rounds.advance, draws)
        if not bool(state.finite):
            raise DenoiserError("denoiser returned NaN or infinity; check its weights, inputs and dtype")
        return state.result(noise.dtype, replays, chains)

    def predraft(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, generator: Generators = None) -> PreDraft:
        """Sample whole chains ahead of time; see :meth:`SpeculativeSampler.predraft`."""
        return PreDraft.of(self.process, self(denoiser, noise, cond, generator, record=True))

    def warm_up(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, record: bool = False) -> None:
        """Compile or capture every width for inputs like these; the random numbers are of no account.

        With ``record`` for what :meth:`predraft` needs, and for calls with a pre-draft.
        """
        noise, cond = filled(noise, cond, self.batches)
        rounds, runner, widths = self.prepare(denoiser, noise, cond)
        dtype = state_dtype(noise)
        random = RandomSource(torch.Generator().manual_seed(0), len(noise), noise.device, dtype)
        with torch.no_grad():
            for width in widths:
                runner.start(self._begin(noise, record), cond)
                runner.apply(rounds.begin, None)
                runner.apply(rounds.advance, full_draws(random, width, noise))
        if record:
            draft = self.predraft(denoiser, noise, cond, torch.Generator().manual_seed(0))
            self(denoiser, noise, cond, torch.Generator().manual_seed(1), predraft=draft)

    def prepare(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond = None
    ) -> tuple[StaticRounds, Runner[RoundState], list[int]]:
        """The static rounds for this network, what runs them, and the widths that they come in."""
        dtype = state_dtype(noise)
        cuda = noise.device.type == "cuda"
        key = (id(denoiser), noise.device, noise.dtype)
        if key not in self._prepared:
            rounds = StaticRounds(
                LinearChain(self.process.to(noise.device, dtype)),
                denoiser,  # kept, so that its id stays its own
                noise.dtype,
                self.sampler.drafter,
                self.sampler.verifier,
                self.sampler.opening,
                self.sampler.table.to(noise.device),
            )
            backend: Backend = self.backend or ("graph+inductor" if cuda else "inductor")
            self._prepared[key] = (rounds, make_runner(backend))
            # Drafters and openings bring their tables to the device when they are first asked: not in a compiled round.
            random = RandomSource(torch.Generator().manual_seed(0), len(noise), noise.device, dtype)
            state = rounds.begin(self._begin(noise, False), None, cond)
            rounds.advance(state, full_draws(random, 1, noise), cond)
        return *self._prepared[key], self.widths or _usual_widths(self._longest, cuda)

    def _begin(self, noise: Tensor, record: bool, chains: int | None = None) -> RoundState:
        x, steps = noise.to(state_dtype(noise)), self.process.num_steps
        return RoundState.start(x, steps, record, self._recycled, chains)


def _usual_widths(longest: int, cuda: bool) -> list[int]:
    return [longest] if cuda else sorted({max(1, longest // 4), max(1, longest // 2), longest})


def full_draws(random: RandomSource, width: int, noise: Tensor) -> Draws:
    """The numbers of a round of ``width`` steps for all chains of ``random``, padded to the rows of ``noise``."""
    everyone, event, rows = range(random.batch), noise.shape[1:], len(noise)
    return Draws(
        noise=padded(random.window_noise([width] * random.batch, event, everyone), rows),
        uniform=padded(random.window_uniform([width] * random.batch, everyone), rows),
        fresh=padded(random.noise(event), rows),
    )


def _exact_draws(random: RandomSource, width: int, noise: Tensor, active: list[int], lengths: list[int]) -> Draws:
    """What the eager round draws, padded to ``width`` and to the rows of ``noise``."""
    event, batch = noise.shape[1:], len(noise)
    drawn = random.window_noise(lengths, event, active)
    uniform = random.window_uniform(lengths, active)
    fresh = random.noise(event, active)
    padded = Draws(
        noise=drawn.new_zeros((batch, width, *event)),
        uniform=uniform.new_zeros((batch, width + 1)),
        fresh=fresh.new_zeros((batch, *event)),
    )
    padded.noise[active, : drawn.shape[1]] = drawn
    padded.uniform[active, : uniform.shape[1] - 1] = uniform[:, :-1]
    padded.uniform[active, -1] = uniform[:, -1]
    padded.fresh[active] = fresh
    return padded


def _replayed(predraft: PreDraft, steps: int, random: RandomSource, rows: int) -> tuple[Draft, Draws]:
    def by_chain(values: Tensor) -> Tensor:
        return padded(values.transpose(0, 1), rows)

    uniform = padded(random.window_uniform([steps] * random.batch, range(random.batch)), rows)
    fresh = padded(random.noise(predraft.start.shape[1:]), rows)
    draft = Draft(by_chain(predraft.states[: steps + 1]), by_chain(predraft.x0[:steps]))
    return draft, Draws(by_chain(predraft.noise[:steps]), uniform, fresh)
