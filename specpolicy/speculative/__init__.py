"""Exact speculative sampling of reverse diffusions: process × drafter × verifier × window.

Needs torch alone; knows neither robots nor images nor files.
"""

from .baseline import SchedulerSampler as SchedulerSampler
from .compiled import compile_sampler as compile_sampler
from .denoiser import Denoiser as Denoiser
from .denoiser import DenoiserError as DenoiserError
from .drafters import Drafter as Drafter
from .drafters import FreeDrafter as FreeDrafter
from .drafters import FrozenDrafter as FrozenDrafter
from .drafters import LinearDrafter as LinearDrafter
from .drafters import RecyclingDrafter as RecyclingDrafter
from .gains import Gains as Gains
from .opening import KernelOpening as KernelOpening
from .opening import LinearOpening as LinearOpening
from .opening import Opening as Opening
from .opening import ZeroOpening as ZeroOpening
from .predraft import PreDraft as PreDraft
from .process import ReverseProcess as ReverseProcess
from .result import SampleResult as SampleResult
from .sampler import SequentialSampler as SequentialSampler
from .sampler import SpeculativeSampler as SpeculativeSampler
from .sampler import asd as asd
from .verifiers import BlockVerifier as BlockVerifier
from .verifiers import ReflectionVerifier as ReflectionVerifier
from .verifiers import ResidualVerifier as ResidualVerifier
from .verifiers import Verifier as Verifier
from .window import AdaptiveWindow as AdaptiveWindow
