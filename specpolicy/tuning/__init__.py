"""Window lengths tuned to one device: cost of its network evaluations, acceptance of drafts, best lengths."""

from specpolicy.tuning.acceptance import AcceptanceProfile as AcceptanceProfile
from specpolicy.tuning.acceptance import record_profile as record_profile
from specpolicy.tuning.automatic import AutoWindow as AutoWindow
from specpolicy.tuning.cost_model import RoundCost as RoundCost
from specpolicy.tuning.cost_model import measure_evaluations as measure_evaluations
from specpolicy.tuning.store import WindowsError as WindowsError
from specpolicy.tuning.store import load_windows as load_windows
from specpolicy.tuning.store import sampler_key as sampler_key
from specpolicy.tuning.store import save_windows as save_windows
from specpolicy.tuning.tune import TunedWindows as TunedWindows
from specpolicy.tuning.tune import measure_rounds as measure_rounds
from specpolicy.tuning.tune import tune_windows as tune_windows
from specpolicy.tuning.windows import WindowChoice as WindowChoice
from specpolicy.tuning.windows import WindowPlan as WindowPlan
from specpolicy.tuning.windows import best_constant as best_constant
from specpolicy.tuning.windows import choose_windows as choose_windows
from specpolicy.tuning.windows import expected_time as expected_time
from specpolicy.tuning.windows import plan_windows as plan_windows
