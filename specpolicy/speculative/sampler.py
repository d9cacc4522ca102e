"""The samplers: speculative, and the sequential one that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specpolicy.speculative.chain_batch import ChainBatch, StateBuffer
from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, prepared
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.drafters.constant import FreeDrafter, FrozenDrafter
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.inputs import Generators, check_part
from specpolicy.speculative.linear_chain import MultiStepTransition, max_draft_lengths
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import SpeculativeRound
from specpolicy.speculative.sampler_call import Noise, check_call
from specpolicy.speculative.single_chain import StepwiseChain, is_small
from specpolicy.speculative.single_chain_rounds import SingleChainRounds
from specpolicy.speculative.verifiers import BlockVerifier, ReflectionVerifier, Verifier
from specpolicy.speculative.window import (
    AdaptiveSchedule,
    AdaptiveWindow,
    FixedSchedule,
    Window,
    WindowSchedule,
    window_lengths,
)
from specpolicy.utils.checks import check_integer


class SpeculativeSampler:
    """Samples a reverse process in rounds of drafting and verification.

    The joint distribution of all states is that of :class:`SequentialSampler` for every drafter and window, if
    ``exact``.

    Args:
        process: the chain to sample.
        drafter: proposes steps; by default :class:`FreeDrafter`.
        verifier: keeps a prefix of them and repairs the first rejection; by default :class:`BlockVerifier`. Any pair
            goes together, but a drafter that recycles needs a causal verifier (reflection, residual).
        window: steps to draft a round, one number or one for each position of the chain; or an
            :class:`AdaptiveWindow`.
        initial_guess: predicts x̂0 for the first round's drafts, which saves the network evaluation at pure noise; None
            makes that evaluation.
        replay: steps of a pre-drafted chain to verify in the first evaluation; None for all that have noise. Fewer pay
            off where rows cost time and pre-drafts are poor.

    Raises:
        TypeError: drafter, verifier or initial guess are none.
        ValueError: the window or ``replay`` is below 1 or no whole number, no step of the process has noise, or the
            verifier is not causal where it must be.

    Attributes:
        table: steps to draft from each position, shape ``(K,)``; an adaptive window may draft fewer.
        replayed: steps of a pre-draft that the first evaluation verifies.
        exact: whether the distribution is that of the sequential sampler.
    """

    def __init__(
        self,
        process: ReverseProcess,
        drafter: Drafter | None = None,
        verifier: Verifier | None = None,
        window: Window = 24,
        initial_guess: X0Guess | None = None,
        replay: int | None = None,
    ) -> None:
        check_part("drafter", drafter, Drafter, "FreeDrafter()")
        check_part("verifier", verifier, Verifier, "BlockVerifier()")
        check_part("initial_guess", initial_guess, X0Guess, "ZeroGuess()")
        if not bool((process.sigma > 0).any()):
            raise ValueError("no step of this process has noise (sigma = 0 throughout): there is nothing to verify")
        self.process = process
        self.drafter = drafter if drafter is not None else FreeDrafter()
        self.verifier = verifier if verifier is not None else BlockVerifier()
        if self.drafter.recycles and not self.verifier.causal:
            raise ValueError(
                f"{type(self.drafter).__name__} drafts again with noises beyond the first rejection, and "
                f"{type(self.verifier).__name__} has looked at them, so that the sample would not be exact: take "
                "ReflectionVerifier or ResidualVerifier"
            )
        self.window, self.initial_guess, self.replay = window, initial_guess, replay
        self.exact: bool = self.verifier.exact
        longest = max_draft_lengths(process)
        self.table = longest if isinstance(window, AdaptiveWindow) else window_lengths(window, longest)
        self.replayed = min(int(longest[0]), process.num_steps if replay is None else check_integer("replay", replay))
        self._rounds: dict[tuple[torch.device, torch.dtype], SpeculativeRound] = {}
        self._host: SingleChainRounds | None = None

    def __repr__(self) -> str:
        """Name the parts."""
        parts = f"{type(self.drafter).__name__}, {type(self.verifier).__name__}, window={self.window}"
        if self.initial_guess is not None:
            parts += f", {type(self.initial_guess).__name__}"
        return f"SpeculativeSampler(K={self.process.num_steps}, {parts})"

    def round_for(self, device: torch.device, dtype: torch.dtype) -> SpeculativeRound:
        """Make one round of this sampler for states of one kind.

        Args:
            device: of the states.
            dtype: of the states, float32 or better.

        Returns:
            The round; the same one for every call.
        """
        place = (device, dtype)
        if place not in self._rounds:
            transition = MultiStepTransition(self.process.to(device, dtype))
            self._rounds[place] = SpeculativeRound(transition, self.drafter, self.verifier, self.initial_guess)
        return self._rounds[place]

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Noise,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`PreDraftingSampler`."""
        random = check_call(noise, cond, generator)
        if predraft is not None:
            predraft.check(noise, self.process)
        single = self._single(noise)
        if single is not None:
            return single.sample(denoiser, noise, cond, random, record, predraft, self.replayed)
        chains = self._start(denoiser, noise, cond, random.dtype, record)
        schedule = self._schedule(noise.device)
        if predraft is not None and self.replayed:
            chains.replay(predraft, self.replayed, random)
        while len(active := chains.active()):
            chains.advance(active, schedule, random)
        return chains.result()

    def _single(self, noise: Tensor) -> SingleChainRounds | None:
        """Rounds of one chain on the CPU, where its calls are what costs; None for all others."""
        if not is_small(self.process, noise) or isinstance(self.window, AdaptiveWindow):
            return None
        if self._host is None and SingleChainRounds.takes(self.drafter):
            transition = MultiStepTransition(self.process.to("cpu", torch.float64))
            rounds = SpeculativeRound(transition, self.drafter, self.verifier, self.initial_guess)
            self._host = SingleChainRounds(rounds, self.table)
        return self._host

    def rounds(
        self,
        denoiser: Denoiser,
        noise: Noise,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        begin: int = 0,
        state_buffer: StateBuffer | None = None,
    ) -> Iterator[ChainBatch]:
        """Sample round by round, for callers that follow the chains or may want to stop.

        Args:
            denoiser: as in a call.
            noise: state of all chains at ``begin``, shape ``(B, *event)``.
            cond: as in a call.
            generator: as in a call.
            record: as in a call.
            begin: position at which all chains start.
            state_buffer: keeps the states for the caller.

        Yields:
            The chains after each round, always the same object: do not change it.

        Raises:
            DenoiserError: as in a call.
            TypeError: as in a call.
            ValueError: as in a call, or ``begin`` is no position of the chain.
        """
        if not 0 <= begin < self.process.num_steps:
            raise ValueError(f"begin={begin}; the positions of this chain are 0 … {self.process.num_steps - 1}")
        with torch.no_grad():
            random = check_call(noise, cond, generator)
            chains = self._start(denoiser, noise, cond, random.dtype, record, begin, state_buffer)
            schedule = self._schedule(noise.device)
        while len(active := chains.active()):
            with torch.no_grad():
                chains.advance(active, schedule, random)
            yield chains

    def predraft(self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None) -> PreDraft:
        """Sample whole chains ahead of time, under a predicted condition; see :class:`PreDraftingSampler`."""
        return PreDraft.of(self.process, self(denoiser, noise, cond, generator, record=True))

    def _start(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond,
        dtype: torch.dtype,
        record: bool,
        begin: int = 0,
        state_buffer: StateBuffer | None = None,
    ) -> ChainBatch:
        return ChainBatch(
            self.round_for(noise.device, dtype),
            denoiser,
            noise,
            cond,
            begin=begin,
            record=record,
            measure=isinstance(self.window, AdaptiveWindow),
            state_buffer=state_buffer,
        )

    def _schedule(self, device: torch.device) -> WindowSchedule:
        table = self.table.to(device)
        if isinstance(self.window, AdaptiveWindow):
            return AdaptiveSchedule(self.window, self.process, table)
        return FixedSchedule(table)


class SequentialSampler:
    """Samples the same chain with one network evaluation a step: the reference for speculation.

    Args:
        process: the chain to sample.
    """

    exact: bool = True

    def __init__(self, process: ReverseProcess) -> None:
        self.process = process
        self._placed: dict[tuple[torch.device, torch.dtype], ReverseProcess] = {}
        self._host: StepwiseChain | None = None

    def __repr__(self) -> str:
        """Name the number of steps."""
        return f"SequentialSampler(K={self.process.num_steps})"

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`Sampler`."""
        random = check_call(noise, cond, generator)
        if is_small(self.process, noise):
            self._host = self._host or StepwiseChain(self.process)
            return self._host.sample(denoiser, noise, cond, random, record)
        place = (noise.device, dtype := random.dtype)
        if place not in self._placed:
            self._placed[place] = self.process.to(*place)
        process = self._placed[place]
        cond = prepared(denoiser, cond)
        x = noise.to(dtype)
        states, found = [x], []
        for step in range(process.num_steps):
            k = torch.full((len(noise),), step, dtype=torch.long, device=noise.device)
            output = call_denoiser(denoiser, x.to(noise.dtype), process.timesteps[k], cond)
            x0 = process.x0(x, output.to(dtype), k)
            x = process.mean(x, x0, k)
            if self.process.sigma[step] > 0:
                x = x + per_row(process.sigma[k], x) * random.noise(noise.shape[1:])
            if record:
                states.append(x)
                found.append(x0)
        return SampleResult(
            sample=x.to(noise.dtype),
            passes=(count := torch.full((len(noise),), process.num_steps, dtype=torch.long)),
            evaluations=count.clone(),
            trajectory=torch.stack(states) if record else None,
            x0=torch.stack(found) if record else None,
        )


def asd(process: ReverseProcess, window: Window = 20) -> SpeculativeSampler:
    """Make an autospeculative decoding (ASD) sampler: the frozen drafter with reflection (Hu et al. 2025).

    Args:
        process: the chain to sample.
        window: steps to draft a round; published: 20–24.

    Returns:
        The sampler.
    """
    return SpeculativeSampler(process, FrozenDrafter(), ReflectionVerifier(), window)
