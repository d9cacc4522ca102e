"""Exact speculative sampling of reverse diffusions: process × drafter × verifier × window.

Needs torch alone; knows neither robots nor images nor files.
"""

from specpolicy.speculative.compiled.sampler import compile_sampler as compile_sampler
from specpolicy.speculative.denoiser import Denoiser as Denoiser
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
from specpolicy.speculative.log_prob import ChainLogProb as ChainLogProb
from specpolicy.speculative.log_prob import chain_log_prob as chain_log_prob
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
