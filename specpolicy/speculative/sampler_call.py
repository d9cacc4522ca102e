"""The call that all samplers have in common, and its checks."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.inputs import Generators, check_cond, check_noise
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult

Noise = Float[Tensor, "b ..."]
"""What B chains start from: standard normal, floating point, of shape ``(B, *event)``."""


@runtime_checkable
class Sampler(Protocol):
    """What a policy needs of a sampler; every sampler of this library has this call."""

    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``.

        Args:
            denoiser: see :class:`Denoiser`; called with the noise's dtype.
            noise: x_0 of each chain, shape ``(B, *event)``.
            cond: nested dict or tuple of tensors with leading dimension B; the rows that are evaluated are gathered.
            generator: one, or one for each chain; with a list, a chain does not depend on its neighbours.
            record: keep all states and x̂0 (memory for K + 1 events a chain).

        Returns:
            Samples, their network evaluations, and what each round did.

        Raises:
            DenoiserError: the denoiser returned NaN, infinity or another shape.
            TypeError: noise, conditions or generators are of another kind.
            ValueError: shapes or the number of generators do not fit.
        """
        ...


@runtime_checkable
class PreDraftingSampler(Sampler, Protocol):
    """A sampler that can draft whole chains ahead of the observation."""

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Noise,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``, from a pre-draft if there is one.

        Args:
            denoiser: as for :class:`Sampler`, like all others.
            noise: with a pre-draft it must be ``predraft.start``.
            cond: the true condition.
            generator: must not draw what it drew for the pre-draft.
            record: keep all states and x̂0.
            predraft: chains drafted under other conditions, of this process and with other random numbers than this
                call's. The first evaluation verifies them under ``cond``, the rest is drafted as usual. The sample is
                exact at ``cond``, whatever the pre-draft's conditions were.

        Raises:
            ValueError: also for a pre-draft of another process or noise.
        """
        ...

    def predraft(self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None) -> PreDraft:
        """Sample whole chains ahead of time, under a predicted condition.

        Hand the outcome to a later call, with ``predraft.start`` as noise and the true condition. That call must draw
        from other random numbers: go on with the same generators, or take new ones, but do not set them back.

        Args:
            denoiser: as in a call, like what is raised.
            noise: as in a call.
            cond: the predicted condition.
            generator: as in a call.

        Returns:
            The chains with the noises that made them.
        """
        ...


def check_call(noise: Any, cond: Any, generator: Any) -> ChainGenerators:
    """Check what a sampler was called with.

    Args:
        noise: as for :class:`Sampler`, like the others.
        cond: has a row for each of ``noise``.
        generator: one for all chains, one for each, or None.

    Returns:
        The chains' random numbers, on the device of the noise and in the dtype that chains are computed in.

    Raises:
        TypeError: noise, conditions or generators are of another kind.
        ValueError: shapes or the number of generators do not fit.
    """
    dtype = check_noise(noise)
    check_cond(cond, len(noise))
    return ChainGenerators(generator, len(noise), noise.device, dtype)
