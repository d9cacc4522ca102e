"""Sample diffusion policies exactly and faster, by speculation.

The names below are the public interface. Those that need diffusers are imported when they are first asked for, since
sampling itself needs torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specpolicy.speculative.compiled.sampler import compile_sampler as compile_sampler
from specpolicy.speculative.denoiser import DenoiserError as DenoiserError
from specpolicy.speculative.drafters.base import Drafter as Drafter
from specpolicy.speculative.drafters.constant import FreeDrafter as FreeDrafter
from specpolicy.speculative.drafters.constant import FrozenDrafter as FrozenDrafter
from specpolicy.speculative.drafters.linear import LinearDrafter as LinearDrafter
from specpolicy.speculative.drafters.linear import X0Jacobian as X0Jacobian
from specpolicy.speculative.drafters.recycling import RecyclingDrafter as RecyclingDrafter
from specpolicy.speculative.initial_guess import KernelGuess as KernelGuess
from specpolicy.speculative.initial_guess import LinearGuess as LinearGuess
from specpolicy.speculative.initial_guess import X0Guess as X0Guess
from specpolicy.speculative.initial_guess import ZeroGuess as ZeroGuess
from specpolicy.speculative.predraft import PreDraft as PreDraft
from specpolicy.speculative.process import ReverseProcess as ReverseProcess
from specpolicy.speculative.result import SampleResult as SampleResult
from specpolicy.speculative.sampler import SchedulerSampler as SchedulerSampler
from specpolicy.speculative.sampler import SequentialSampler as SequentialSampler
from specpolicy.speculative.sampler import SpeculativeSampler as SpeculativeSampler
from specpolicy.speculative.sampler import asd as asd
from specpolicy.speculative.verifiers import BlockVerifier as BlockVerifier
from specpolicy.speculative.verifiers import ReflectionVerifier as ReflectionVerifier
from specpolicy.speculative.verifiers import ResidualVerifier as ResidualVerifier
from specpolicy.speculative.verifiers import Verifier as Verifier
from specpolicy.speculative.window import AdaptiveWindow as AdaptiveWindow

if TYPE_CHECKING:
    from specpolicy.policies.checkpoint import CheckpointError as CheckpointError
    from specpolicy.policies.checkpoint import load_policy as load_policy
    from specpolicy.policies.config import PolicyConfig as PolicyConfig
    from specpolicy.policies.diffusion_policy import ActionChunk as ActionChunk
    from specpolicy.policies.diffusion_policy import DiffusionPolicy as DiffusionPolicy
    from specpolicy.policies.observations import ObservationError as ObservationError

__version__ = "0.1.0"

_LATE = {
    "ActionChunk": "specpolicy.policies.diffusion_policy",
    "CheckpointError": "specpolicy.policies.checkpoint",
    "DiffusionPolicy": "specpolicy.policies.diffusion_policy",
    "ObservationError": "specpolicy.policies.observations",
    "PolicyConfig": "specpolicy.policies.config",
    "load_policy": "specpolicy.policies.checkpoint",
}
"""Where the names lie that are imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
