"""Windows for one device: what a pass costs there, how far drafts are kept, and the lengths that follow."""

from .choice import WindowChoice as WindowChoice
from .choice import choose_windows as choose_windows
from .job import TunedWindows as TunedWindows
from .job import measure_rounds as measure_rounds
from .job import tune_windows as tune_windows
from .latency import RoundCost as RoundCost
from .latency import measure_passes as measure_passes
from .plan import WindowPlan as WindowPlan
from .plan import best_constant as best_constant
from .plan import expected_time as expected_time
from .plan import plan_windows as plan_windows
from .profile import AcceptanceProfile as AcceptanceProfile
from .profile import record_profile as record_profile
from .store import WindowsError as WindowsError
from .store import load_windows as load_windows
from .store import sampler_key as sampler_key
from .store import save_windows as save_windows
