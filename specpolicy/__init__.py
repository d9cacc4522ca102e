"""specpolicy: exact speculative sampling of diffusion policies."""

from .speculative import AdaptiveWindow as AdaptiveWindow
from .speculative import BlockVerifier as BlockVerifier
from .speculative import DenoiserError as DenoiserError
from .speculative import Drafter as Drafter
from .speculative import FreeDrafter as FreeDrafter
from .speculative import FrozenDrafter as FrozenDrafter
from .speculative import Gains as Gains
from .speculative import KernelOpening as KernelOpening
from .speculative import LinearDrafter as LinearDrafter
from .speculative import LinearOpening as LinearOpening
from .speculative import Opening as Opening
from .speculative import PreDraft as PreDraft
from .speculative import RecyclingDrafter as RecyclingDrafter
from .speculative import ReflectionVerifier as ReflectionVerifier
from .speculative import ResidualVerifier as ResidualVerifier
from .speculative import ReverseProcess as ReverseProcess
from .speculative import SampleResult as SampleResult
from .speculative import SchedulerSampler as SchedulerSampler
from .speculative import SequentialSampler as SequentialSampler
from .speculative import SpeculativeSampler as SpeculativeSampler
from .speculative import Verifier as Verifier
from .speculative import ZeroOpening as ZeroOpening
from .speculative import asd as asd
from .speculative import compile_sampler as compile_sampler

__version__ = "0.1.0"
