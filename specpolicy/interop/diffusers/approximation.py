"""ASDSV in a pipeline: a smaller network drafts. Approximate."""

from __future__ import annotations

from typing import Any

from specpolicy.approximate import AsdsvSampler, Stages, ThresholdVerifier

from .acceleration import Acceleration
from .families import family_of


def approximate(
    pipeline: Any, draft: Any, verifier: ThresholdVerifier, stages: Stages | None = None, record: bool = False
) -> Acceleration:
    """Let a smaller network draft the steps of a stock pipeline. *Not exact*: the images have another law.

    Args:
        pipeline: changed in place until :meth:`Acceleration.restore`; see :func:`accelerate`.
        draft: a network for the same states and conditions and of the same prediction type as the pipeline's, on the
            same device: a smaller ``UNet2DModel`` beside a ``UNet2DModel``. It is guided as the pipeline's is.
        verifier: how close its predictions must be. stages: who makes which steps.
        record: keep all states in the account.

    Raises:
        PipelineRefused: pipeline, scheduler or a network do not fit.
    """
    family_of(pipeline).channels(draft)
    return Acceleration(
        pipeline, lambda process, predict: AsdsvSampler(process, predict(draft), verifier, stages), False, record
    )
