"""Few-step DDIM warm-started from what is left of the chunk before. Approximate.

The unplayed tail of the last chunk is shifted to the present, its last action repeated, noised to an intermediate
timestep and denoised from there in a few deterministic steps. That is how action reuse is done by Falcon (Chen et al.
2025, arXiv 2503.00339) and by the reuse baselines of STEP (arXiv 2602.08245), which itself starts from a predictor that
has to be trained. The first chunk of an episode has nothing to start from and takes ordinary DDIM steps.

What the chunk is then distributed as depends on all chunks before it: such a sampler stays with the mode that it
once chose, and has no distribution at a single observation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.policies.protocols import PreviousChunk
from specpolicy.samplers import Trained, ddim
from specpolicy.speculative.denoiser import Cond, Denoiser, gather_rows, prepared
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler_call import Noise, check_call
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.utils.checks import check_integer
from specpolicy.utils.diffusers_schedulers import DDIMScheduler, scheduler_from_config


class WarmDDIM:
    """DDIM that starts from the chunk before, where there is one; see the module.

    Called as it is, it has none and makes the first chunk of an episode. :meth:`continuing` binds it to the chunks
    before; :func:`specpolicy.control.inference.infer_batch` does so for every episode, session and robot.

    Args:
        first: samples the chunks that have none before them, from pure noise.
        refine: samples the others, from noised actions.
        alpha_bar: ᾱ of the noise that ``refine`` starts from, in (0, 1).
        shift: actions by which a chunk is moved on; None for as many ticks as have passed since its first one.

    Raises:
        ValueError: ``alpha_bar`` is not in (0, 1), or ``shift`` is negative or no whole number.
    """

    exact: bool = False

    def __init__(self, first: Any, refine: Any, alpha_bar: float, shift: int | None = None) -> None:
        if not 0 < alpha_bar < 1:
            raise ValueError(f"alpha_bar={alpha_bar}; expected a noise level between 0 (pure noise) and 1 (none)")
        self.first, self.refine, self.alpha_bar = first, refine, alpha_bar
        self.shift = None if shift is None else check_integer("shift", shift, 0)

    def __repr__(self) -> str:
        """Name the parts."""
        return f"WarmDDIM(first={self.first!r}, refine={self.refine!r}, alpha_bar={self.alpha_bar:.3f})"

    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample chunks that have none before them; arguments and errors as in :class:`SchedulerSampler`."""
        result: SampleResult = self.first(denoiser, noise, cond=cond, generator=generator, record=record)
        return result

    def continuing(self, previous: Sequence[PreviousChunk | None]) -> WarmStart:
        """Bind the sampler to the chunks before, for one call.

        Args:
            previous: for each row of the batch; None for the first chunk of an episode.

        Returns:
            A sampler for that batch.
        """
        return WarmStart(self, previous)

    def tail(self, previous: PreviousChunk | None) -> Float[Tensor, "time action"] | None:
        """Move a chunk on to the present.

        Args:
            previous: the chunk before.

        Returns:
            What is left of it, its last action repeated to the full length; None if nothing is left.
        """
        if previous is None:
            return None
        shift = previous.elapsed if self.shift is None else self.shift
        left = previous.sample[shift:]
        return torch.cat([left, left[-1:].expand(shift, -1)])[: len(previous.sample)] if len(left) else None

    def with_parts(self, change: Callable[[Any], Any]) -> WarmDDIM:
        """Make the same of other samplers, such as their compiled forms.

        Args:
            change: makes one of each of the two.

        Returns:
            The new sampler.
        """
        return WarmDDIM(change(self.first), change(self.refine), self.alpha_bar, self.shift)

    def warm_up(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None) -> None:
        """Prepare compiled parts for inputs like these; see :class:`~specpolicy.CompiledChain`."""
        for part in (self.first, self.refine):
            part.warm_up(denoiser, noise, cond)


class WarmStart:
    """A :class:`WarmDDIM` and the chunks before those that it is to sample: good for one call.

    Args:
        sampler: whose steps are made.
        previous: for each row of the batch.
    """

    exact: bool = False

    def __init__(self, sampler: WarmDDIM, previous: Sequence[PreviousChunk | None]) -> None:
        self.sampler, self.previous = sampler, list(previous)

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chunk for each row of ``noise``, which is mixed with the chunk before where there is one.

        Arguments as for :class:`SchedulerSampler`, but for ``record``: the rows' chains differ in length.

        Raises:
            ValueError: ``record``, another number of rows than chunks before, or these of another shape.
        """
        if record:
            raise ValueError("warm-started chains differ in length and keep no trajectory; leave record out")
        generators = check_call(noise, cond, generator).generators
        if len(self.previous) != len(noise):
            raise ValueError(
                f"{len(self.previous)} chunks before for a batch of {len(noise)}; give one, or None, a row"
            )
        cond = prepared(denoiser, cond)
        tails = [self.sampler.tail(each) for each in self.previous]
        rows = {
            self.sampler.first: [row for row, tail in enumerate(tails) if tail is None],
            self.sampler.refine: [row for row, tail in enumerate(tails) if tail is not None],
        }
        start, parts = noise.clone(), []
        for row, tail in enumerate(tails):
            if tail is not None:
                start[row] = self._noised(tail, noise[row])
        for part, chosen in rows.items():
            if chosen:
                index = torch.tensor(chosen, device=noise.device)
                own = generator if generators is None else [generators[row] for row in chosen]
                parts.append((index, part(denoiser, start[index], cond=gather_rows(cond, index), generator=own)))
        return _joined(parts, noise)

    def _noised(self, tail: Tensor, noise: Tensor) -> Tensor:
        if tail.shape != noise.shape:
            raise ValueError(
                f"the chunk before has shape {tuple(tail.shape)} and the noise {tuple(noise.shape)}; expected what "
                "this policy sampled last"
            )
        signal = self.sampler.alpha_bar
        return signal**0.5 * tail.to(noise) + (1 - signal) ** 0.5 * noise


def _joined(parts: Sequence[tuple[Tensor, SampleResult]], noise: Tensor) -> SampleResult:
    """One result of those for some rows each."""
    sample = torch.empty_like(noise)
    passes = torch.zeros(len(noise), dtype=torch.long)
    evaluations = torch.zeros_like(passes)
    for index, result in parts:
        sample[index] = result.sample
        passes[index.cpu()], evaluations[index.cpu()] = result.passes, result.evaluations
    return SampleResult(sample=sample, passes=passes, evaluations=evaluations)


def warm_ddim(
    policy: Trained,
    num_inference_steps: int,
    start_timestep: int,
    first_num_inference_steps: int = 10,
    shift: int | None = None,
) -> WarmDDIM:
    """Make a warm-started DDIM sampler.

    Args:
        policy: or the scheduler that it was trained with.
        num_inference_steps: network evaluations of a chunk that has one before it.
        start_timestep: timestep to whose noise level the tail of the last chunk is noised. ``start_timestep + 1``
            must be a multiple of ``num_inference_steps``, so that DDIM's stride ends at the sample.
        first_num_inference_steps: DDIM steps of an episode's first chunk.
        shift: see :class:`WarmDDIM`.

    Returns:
        The sampler.

    Raises:
        ValueError: a number is out of range, or the steps do not fit the start.
    """
    first = ddim(policy, first_num_inference_steps)
    whole = first.scheduler
    last = whole.config.num_train_timesteps - 1
    steps = check_integer("num_inference_steps", num_inference_steps)
    times = check_integer("start_timestep", start_timestep, 0, last) + 1
    if times % steps:
        near = max(times // steps, 1) * steps - 1
        raise ValueError(
            f"start_timestep={start_timestep} is no start for {steps} even steps; take {near}, or another number one "
            f"below a multiple of {steps}"
        )
    # The chain cut off above the start, as a scheduler of its own: its first step is the start itself.
    cut = scheduler_from_config(
        DDIMScheduler,
        whole.config,
        num_train_timesteps=times,
        trained_betas=whole.betas[:times].tolist(),
        rescale_betas_zero_snr=False,
        timestep_spacing="trailing",
        steps_offset=0,
    )
    refine = SchedulerSampler(cut, steps, {"eta": 0.0})
    return WarmDDIM(first, refine, float(whole.alphas_cumprod[start_timestep]), shift)
