"""What a policy's own chains teach its drafter: gains and an opening, kept beside the checkpoint.

Record sequential chains, fit, store: :func:`calibrate`. Samplers then read it with :func:`load_calibration`.
"""

from .calibration import Calibration as Calibration
from .calibration import CalibrationError as CalibrationError
from .chains import RecordedChains as RecordedChains
from .fit import fit_calibration as fit_calibration
from .gains import fit_gains as fit_gains
from .job import calibrate as calibrate
from .opening import fit_opening as fit_opening
from .recording import record_chains as record_chains
from .sources import Histories as Histories
from .sources import histories_of_demonstrations as histories_of_demonstrations
from .sources import histories_of_observations as histories_of_observations
from .store import calibration_path as calibration_path
from .store import load_calibration as load_calibration
from .store import save_calibration as save_calibration
from .uncertainty import Uncertainty as Uncertainty
from .uncertainty import load_uncertainty as load_uncertainty
from .uncertainty import measure_uncertainty as measure_uncertainty
from .uncertainty import save_uncertainty as save_uncertainty
from .uncertainty import uncertainty_path as uncertainty_path
