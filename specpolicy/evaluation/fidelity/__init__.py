"""What samplers keep and lose of a policy's law beyond success: distance, spread, modes, smoothness."""

from __future__ import annotations

from .energy import energy_distance as energy_distance
from .energy import permutation_test as permutation_test
from .measure import Fidelity as Fidelity
from .measure import measure_fidelity as measure_fidelity
from .table import fidelity_json as fidelity_json
from .table import fidelity_table as fidelity_table
