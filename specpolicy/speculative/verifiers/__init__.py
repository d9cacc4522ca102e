"""Verifiers: which drafted steps are kept, and what replaces the first that is not."""

from .base import Comparison as Comparison
from .base import Rejection as Rejection
from .base import StepwiseVerifier as StepwiseVerifier
from .base import Verdict as Verdict
from .base import Verifier as Verifier
from .block import BlockVerifier as BlockVerifier
from .reflection import ReflectionVerifier as ReflectionVerifier
from .residual import ResidualVerifier as ResidualVerifier
