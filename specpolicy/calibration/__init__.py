"""What a policy's own chains teach its drafter: jacobian and an initial guess, kept beside the checkpoint.

Record sequential chains, fit, store: :func:`calibrate`. Samplers then read it with :func:`load_calibration`.
"""

from specpolicy.calibration.calibrate import ObservationSet as ObservationSet
from specpolicy.calibration.calibrate import calibrate as calibrate
from specpolicy.calibration.calibrate import observations_of_demonstrations as observations_of_demonstrations
from specpolicy.calibration.calibrate import observations_of_results as observations_of_results
from specpolicy.calibration.calibrate import record_chains as record_chains
from specpolicy.calibration.fit import RecordedChains as RecordedChains
from specpolicy.calibration.fit import fit_calibration as fit_calibration
from specpolicy.calibration.fit import fit_guess as fit_guess
from specpolicy.calibration.fit import fit_jacobian as fit_jacobian
from specpolicy.calibration.store import Calibration as Calibration
from specpolicy.calibration.store import CalibrationError as CalibrationError
from specpolicy.calibration.store import calibration_path as calibration_path
from specpolicy.calibration.store import load_calibration as load_calibration
from specpolicy.calibration.store import save_calibration as save_calibration
from specpolicy.calibration.x0_variance import X0Variance as X0Variance
from specpolicy.calibration.x0_variance import load_x0_variance as load_x0_variance
from specpolicy.calibration.x0_variance import measure_x0_variance as measure_x0_variance
from specpolicy.calibration.x0_variance import save_x0_variance as save_x0_variance
from specpolicy.calibration.x0_variance import x0_variance_path as x0_variance_path
