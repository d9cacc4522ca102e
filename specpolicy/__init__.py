"""Sample diffusion policies exactly and faster, by speculation.

The names below are the public interface, imported when they are first asked for: sampling needs torch alone, and
the command line answers before torch is loaded. Not even typing is imported here: Ctrl-C while it loads would be
answered with a traceback, since no handler of ours runs yet.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from specpolicy.interop.in_place import accelerate as accelerate
    from specpolicy.interop.loading import load_policy as load_policy
    from specpolicy.policies.checkpoint import CheckpointError as CheckpointError
    from specpolicy.policies.config import PolicyConfig as PolicyConfig
    from specpolicy.policies.diffusion_policy import ActionChunk as ActionChunk
    from specpolicy.policies.diffusion_policy import DiffusionPolicy as DiffusionPolicy
    from specpolicy.policies.observations import ObservationError as ObservationError
    from specpolicy.speculative.compiled.sampler import compile_sampler as compile_sampler
    from specpolicy.speculative.denoiser import DenoiserError as DenoiserError
    from specpolicy.speculative.drafters.base import Drafter as Drafter
    from specpolicy.speculative.drafters.constant import FreeDrafter as FreeDrafter
    from specpolicy.speculative.drafters.constant import FrozenDrafter as FrozenDrafter
    from specpolicy.speculative.drafters.linear import LinearDrafter as LinearDrafter
    from specpolicy.speculative.drafters.linear import X0Jacobian as X0Jacobian
    from specpolicy.speculative.drafters.recycling import RecyclingDrafter as RecyclingDrafter
    from specpolicy.speculative.initial_guess import LinearGuess as LinearGuess
    from specpolicy.speculative.initial_guess import X0Guess as X0Guess
    from specpolicy.speculative.initial_guess import ZeroGuess as ZeroGuess
    from specpolicy.speculative.predraft import PreDraft as PreDraft
    from specpolicy.speculative.process import ReverseProcess as ReverseProcess
    from specpolicy.speculative.result import SampleResult as SampleResult
    from specpolicy.speculative.sampler import SequentialSampler as SequentialSampler
    from specpolicy.speculative.sampler import SpeculativeSampler as SpeculativeSampler
    from specpolicy.speculative.sampler import asd as asd
    from specpolicy.speculative.scheduler_sampler import SchedulerSampler as SchedulerSampler
    from specpolicy.speculative.verifiers import BlockVerifier as BlockVerifier
    from specpolicy.speculative.verifiers import ReflectionVerifier as ReflectionVerifier
    from specpolicy.speculative.verifiers import ResidualVerifier as ResidualVerifier
    from specpolicy.speculative.verifiers import Verifier as Verifier
    from specpolicy.speculative.window import AdaptiveWindow as AdaptiveWindow

__version__ = "0.1.0"

_PUBLIC = {
    "ActionChunk": "specpolicy.policies.diffusion_policy",
    "AdaptiveWindow": "specpolicy.speculative.window",
    "BlockVerifier": "specpolicy.speculative.verifiers",
    "CheckpointError": "specpolicy.policies.checkpoint",
    "DenoiserError": "specpolicy.speculative.denoiser",
    "DiffusionPolicy": "specpolicy.policies.diffusion_policy",
    "Drafter": "specpolicy.speculative.drafters.base",
    "FreeDrafter": "specpolicy.speculative.drafters.constant",
    "FrozenDrafter": "specpolicy.speculative.drafters.constant",
    "LinearDrafter": "specpolicy.speculative.drafters.linear",
    "LinearGuess": "specpolicy.speculative.initial_guess",
    "ObservationError": "specpolicy.policies.observations",
    "PolicyConfig": "specpolicy.policies.config",
    "PreDraft": "specpolicy.speculative.predraft",
    "RecyclingDrafter": "specpolicy.speculative.drafters.recycling",
    "ReflectionVerifier": "specpolicy.speculative.verifiers",
    "ResidualVerifier": "specpolicy.speculative.verifiers",
    "ReverseProcess": "specpolicy.speculative.process",
    "SampleResult": "specpolicy.speculative.result",
    "SchedulerSampler": "specpolicy.speculative.scheduler_sampler",
    "SequentialSampler": "specpolicy.speculative.sampler",
    "SpeculativeSampler": "specpolicy.speculative.sampler",
    "Verifier": "specpolicy.speculative.verifiers",
    "X0Guess": "specpolicy.speculative.initial_guess",
    "X0Jacobian": "specpolicy.speculative.drafters.linear",
    "ZeroGuess": "specpolicy.speculative.initial_guess",
    "asd": "specpolicy.speculative.sampler",
    "compile_sampler": "specpolicy.speculative.compiled.sampler",
    "accelerate": "specpolicy.interop.in_place",
    "load_policy": "specpolicy.interop.loading",
}
"""Each public name with the module that defines it."""


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name == "samplers":
        return import_module("specpolicy.samplers")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, "samplers"})
