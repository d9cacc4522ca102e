"""Any diffusers scheduler, run the ordinary way behind the samplers' call."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from specpolicy.speculative.chain_batch import ChainBatch, StateBuffer
from specpolicy.speculative.denoiser import Cond, Denoiser, call_denoiser, check_cond, state_dtype
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.drafters.constant import FreeDrafter, FrozenDrafter
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.linear_chain import MultiStepTransition, max_draft_lengths
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.process import ReverseProcess, per_row
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import replay_round, run_round
from specpolicy.speculative.schedulers import set_timesteps
from specpolicy.speculative.verifiers import BlockVerifier, ReflectionVerifier, Verifier
from specpolicy.speculative.window import (
    AdaptiveSchedule,
    AdaptiveWindow,
    FixedSchedule,
    Window,
    WindowSchedule,
    window_lengths,
)

Generators = torch.Generator | Sequence[torch.Generator] | None


class _ChainSampler:
    """Checks of the input and the tables of the process, shared by both samplers."""

    exact: bool = True

    def __init__(self, process: ReverseProcess) -> None:
        self.process = process
        self._chains: dict[tuple[torch.device, torch.dtype], MultiStepTransition] = {}

    def _start(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond,
        generator: Generators,
        record: bool,
        measure: bool = False,
        state_buffer: StateBuffer | None = None,
        recycle: bool = False,
    ) -> tuple[ChainBatch, ChainGenerators]:
        dtype = state_dtype(noise)
        check_cond(cond, len(noise))
        place = (noise.device, dtype)
        if place not in self._chains:
            self._chains[place] = MultiStepTransition(self.process.to(*place))
        random = ChainGenerators(generator, len(noise), noise.device, dtype)
        return ChainBatch(self._chains[place], denoiser, noise, cond, record, measure, state_buffer, recycle), random


class SpeculativeSampler(_ChainSampler):
    """Samples a reverse process in rounds of drafting and verification.

    Args:
        process: the chain to sample.
        drafter: proposes steps. verifier: keeps a prefix of them and repairs the first miss. Any pair goes together,
            but a drafter that recycles needs a causal verifier, that stops at the first miss (reflection, residual).
        window: steps to draft a round, one number or one for each position of the chain; or an
            :class:`AdaptiveWindow`.
        initial_guess: guesses x̂0 for the first round's drafts, which saves the pass at pure noise; None spends it.
        replay: steps of a pre-drafted chain to verify in the first pass; None for all that have noise. Fewer are
            worth while where rows cost time and pre-drafts are poor.

    Raises:
        ValueError: the window or ``replay`` is below 1, no step of the process has noise, or the verifier is not
            causal where it must be.

    Attributes:
        table: steps to draft from each position, shape ``(K,)``; an adaptive window may draft fewer.
        replayed: steps of a pre-draft that the first pass verifies.

    The joint law of all states is that of :class:`SequentialSampler` for every drafter and window, if ``exact``.
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
        super().__init__(process)
        if not bool((process.sigma > 0).any()):
            raise ValueError("no step of this process has noise (sigma = 0 throughout): there is nothing to verify")
        self.drafter = drafter if drafter is not None else FreeDrafter()
        self.verifier = verifier if verifier is not None else BlockVerifier()
        if self.drafter.recycles and not self.verifier.causal:
            raise ValueError(
                f"{type(self.drafter).__name__} drafts again with noises beyond the first miss, and "
                f"{type(self.verifier).__name__} has looked at them, so that the sample would not be exact: take "
                "ReflectionVerifier or ResidualVerifier"
            )
        self.window, self.initial_guess, self.replay = window, initial_guess, replay
        self.exact = self.verifier.exact
        within = max_draft_lengths(process)
        self._adapts = isinstance(window, AdaptiveWindow)
        self.table = within if self._adapts else window_lengths(window, within)
        if replay is not None and replay < 1:
            raise ValueError(f"replay={replay}; verify at least 1 step of a pre-draft, or None for all")
        self.replayed = min(int(within[0]), replay or process.num_steps)

    def __repr__(self) -> str:
        parts = f"{type(self.drafter).__name__}, {type(self.verifier).__name__}, window={self.window}"
        if self.initial_guess is not None:
            parts += f", {type(self.initial_guess).__name__}"
        return f"SpeculativeSampler(K={self.process.num_steps}, {parts})"

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
        """Sample one chain for each row of ``noise``.

        Args:
            denoiser: see :class:`Denoiser`; called with the noise's dtype.
            noise: x_0 of each chain, shape ``(B, *event)``. With a pre-draft it must be ``predraft.start``.
            cond: nested dict or tuple of tensors with leading dimension B; the rows that a pass needs are gathered.
            generator: one, or one for each chain; with a list, a chain does not depend on its neighbours.
            record: keep all states and x̂0 (memory for K + 1 events a chain).
            predraft: chains drafted under other conditions, of this process and with other random numbers than this
                call's. The first pass verifies them under ``cond``, the rest is drafted as usual. The sample is
                exact at ``cond``, whatever the pre-draft's conditions were.

        Raises:
            DenoiserError: the denoiser returned NaN, infinity or another shape.
            ValueError: shapes, steps or the number of generators do not fit.
        """
        chains, random = self._start(
            denoiser, noise, cond, generator, record, self._adapts, recycle=self.drafter.recycles
        )
        lengths = self._lengths(noise.device)
        if predraft is not None:
            predraft.check(noise, self.process)
            if self.replayed:
                replay_round(chains, predraft, self.replayed, self.verifier, random)
        while len(chains.active()):
            run_round(chains, self.drafter, self.verifier, lengths, random, self.initial_guess)
        return chains.result()

    def rounds(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        begin: int = 0,
        state_buffer: StateBuffer | None = None,
    ) -> Iterator[ChainBatch]:
        """The same, round by round: for callers that follow the chain on its way, or may want to stop.

        Args:
            denoiser, noise, cond, generator, record: as in a call.
            begin: position at which all chains start; ``noise`` is then their state there.
            state_buffer: keeps the settled states for the caller.

        Yields:
            The chains after each round, always the same object: do not change it.

        Raises:
            DenoiserError, ValueError: as a call does; ``begin`` is no position of the chain.
        """
        if not 0 <= begin < self.process.num_steps:
            raise ValueError(f"begin={begin}; the positions of this chain are 0 … {self.process.num_steps - 1}")
        with torch.no_grad():
            chains, random = self._start(
                denoiser, noise, cond, generator, record, self._adapts, state_buffer, self.drafter.recycles
            )
            chains.k.fill_(begin)
            lengths = self._lengths(noise.device)
        while len(chains.active()):
            with torch.no_grad():
                run_round(chains, self.drafter, self.verifier, lengths, random, self.initial_guess)
            yield chains

    def _lengths(self, device: torch.device) -> WindowSchedule:
        table = self.table.to(device)
        if isinstance(self.window, AdaptiveWindow):
            return AdaptiveSchedule(self.window, self.process, table)
        return FixedSchedule(table)

    def predraft(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, generator: Generators = None) -> PreDraft:
        """Sample whole chains ahead of time, under a condition that is only a guess; arguments as in a call.

        Hand the outcome to a later call, with ``predraft.start`` as noise and the true condition. That call must draw
        from other random numbers: go on with the same generators, or take new ones, but do not set them back.

        Raises:
            DenoiserError, ValueError: as a call does.
        """
        return PreDraft.of(self.process, self(denoiser, noise, cond, generator, record=True))


class SequentialSampler(_ChainSampler):
    """The same chain, one network pass a step: what speculation is measured against."""

    def __repr__(self) -> str:
        return f"SequentialSampler(K={self.process.num_steps})"

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; arguments as in :class:`SpeculativeSampler`."""
        chains, random = self._start(denoiser, noise, cond, generator, record)
        process, everyone = chains.process, torch.arange(len(noise), device=noise.device)
        states, found = [chains.x], []
        for step in range(process.num_steps):
            k = torch.full_like(everyone, step)
            x0 = chains.target_x0(everyone, k, chains.x)
            chains.x = process.mean(chains.x, x0, k)
            if self.process.sigma[step] > 0:
                chains.x = chains.x + per_row(process.sigma[k], chains.x) * random.noise(noise.shape[1:])
            if record:
                states.append(chains.x)
                found.append(x0)
        return SampleResult(
            sample=chains.x.to(noise.dtype),
            passes=chains.passes.cpu(),
            evaluations=chains.evaluations.cpu(),
            trajectory=torch.stack(states) if record else None,
            x0=torch.stack(found) if record else None,
        )


def asd(process: ReverseProcess, window: Window = 20) -> SpeculativeSampler:
    """Autospeculative decoding (ASD): the frozen drafter with reflection. Published windows: 20–24."""
    return SpeculativeSampler(process, FrozenDrafter(), ReflectionVerifier(), window)


class SchedulerError(RuntimeError):
    """A scheduler's step is not finite although state and network output are."""


class SchedulerSampler:
    """Steps a diffusers scheduler (DDIM, DPM-Solver++, Euler, …) through ``scheduler.step``, one pass at a time.

    It samples whatever law the scheduler has: few-step samplers do *not* have the law of the training chain, hence
    ``exact = False``.

    Args:
        scheduler: copied for each call, because multistep solvers keep a history.
        num_inference_steps: steps, and network passes for schedulers of first order.
        step_arguments: further arguments of ``scheduler.step``, such as ``{"eta": 0.0}``.

    Raises:
        ValueError: so many steps are impossible with the scheduler's settings.
    """

    exact: bool = False

    def __init__(self, scheduler: Any, num_inference_steps: int, step_arguments: dict[str, Any] | None = None) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        set_timesteps(self.scheduler, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.step_arguments = dict(step_arguments or {})
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def __repr__(self) -> str:
        return f"SchedulerSampler({type(self.scheduler).__name__}, {self.num_inference_steps} steps)"

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        cond: Cond = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        record: bool = False,
    ) -> SampleResult:
        """Sample as :class:`SequentialSampler` does.

        ``record`` keeps the trajectory; ``x0`` stays None, since not every scheduler has one.

        Raises:
            DenoiserError: the denoiser returned NaN, infinity or another shape.
            SchedulerError: the scheduler made NaN or infinity of finite numbers.
        """
        check_cond(cond, len(noise))
        scheduler = copy.deepcopy(self.scheduler)
        arguments = dict(self.step_arguments)
        if self._takes_generator and generator is not None:
            single = isinstance(generator, torch.Generator)
            arguments["generator"] = generator if single else list(generator)  # type: ignore[arg-type]
        x, states = noise * scheduler.init_noise_sigma, []
        states.append(x)
        for t in scheduler.timesteps:
            rows = torch.full((len(x),), t.item(), device=x.device, dtype=t.dtype)
            output = call_denoiser(denoiser, scheduler.scale_model_input(x, t), rows, cond)
            x = scheduler.step(output, t, x, **arguments).prev_sample
            if not torch.isfinite(x).all():
                raise SchedulerError(
                    f"{type(scheduler).__name__}.step made NaN or infinity of finite numbers at timestep {t.item()}: "
                    "its settings leave this step undefined. Check its betas, variance_type, rescale_betas_zero_snr "
                    "and eta"
                )
            states.append(x)
        count = torch.full((len(x),), len(scheduler.timesteps), dtype=torch.long)
        return SampleResult(
            sample=x, passes=count, evaluations=count.clone(), trajectory=torch.stack(states) if record else None
        )
