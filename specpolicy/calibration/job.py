"""Recording, fitting and storing, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpolicy.policies import DiffusionPolicy
from specpolicy.policies.digest import checkpoint_digest
from specpolicy.speculative import ReverseProcess

from .calibration import Calibration, CalibrationError
from .fit import fit_calibration
from .recording import record_chains
from .sources import Histories
from .store import save_calibration


def calibrate(
    policy: DiffusionPolicy,
    histories: Histories,
    num_inference_steps: int,
    folder: Path,
    *,
    chains: int = 800,
    seed: int = 0,
    most_centres: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> tuple[Calibration, Path]:
    """Calibrate a policy's drafter and keep the outcome beside its checkpoint.

    Args:
        policy: loaded from a checkpoint.
        histories: observations to record chains at; none that the policy is to be judged on.
        num_inference_steps: K.
        folder: for the recorded chains, so that an interrupted call can be gone on with.
        chains: to record. seed: of the recording.
        most_centres: observations that the file may hold, see :func:`fit_calibration`; 0 where they must not go with
            the checkpoint.
        provenance: kept in the file.

    Returns:
        The calibration, and where it was written.

    Raises:
        CalibrationError: the policy was not loaded from a folder, or ``folder`` holds other chains.
        ValueError: the number of steps or chains cannot be used.
    """
    if policy.folder is None:
        raise CalibrationError("the policy was not loaded from a checkpoint: save it first, and load it from there")
    if chains < 1:
        raise ValueError(f"chains={chains}; record at least 1, better several hundred")
    process = ReverseProcess.from_scheduler(policy.scheduler, num_inference_steps)
    identity = {"checkpoint": checkpoint_digest(policy.folder)}
    recorded = record_chains(policy, process, histories, folder, chains=chains, seed=seed, identity=identity)
    about = {"observations": histories.origin, "seed": seed, "provenance": dict(provenance or {})}
    calibration = fit_calibration(process, recorded, about, most_centres)
    return calibration, save_calibration(calibration, policy.folder)
