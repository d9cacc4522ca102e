"""Intervals and tests for what an evaluation counts and times."""

from .average import mean_of_estimates as mean_of_estimates
from .bootstrap import quantile_interval as quantile_interval
from .bootstrap import ratio_of_medians as ratio_of_medians
from .estimate import Estimate as Estimate
from .estimate import StatisticsError as StatisticsError
from .mean import mean_interval as mean_interval
from .paired import mcnemar as mcnemar
from .paired import paired_difference as paired_difference
from .paired import sign_flip_test as sign_flip_test
from .proportion import clustered_wilson as clustered_wilson
from .proportion import wilson as wilson
from .ratio import ratio_of_sums as ratio_of_sums
