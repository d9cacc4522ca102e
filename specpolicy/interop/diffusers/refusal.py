"""What cannot be sampled speculatively, said in words."""

from __future__ import annotations


class PipelineRefused(ValueError):
    """A pipeline, its scheduler or its network does not fit; the message says why and what to use instead."""
