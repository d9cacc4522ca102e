"""Demonstrations in robomimic's HDF5 layout: written, read back, and recorded from experts."""

from __future__ import annotations

from specpolicy.datasets.record import OtherRecording as OtherRecording
from specpolicy.datasets.record import Recorded as Recorded
from specpolicy.datasets.record import RecordingError as RecordingError
from specpolicy.datasets.record import RecordingSettings as RecordingSettings
from specpolicy.datasets.record import record_demonstrations as record_demonstrations
from specpolicy.datasets.robomimic import Episode as Episode
from specpolicy.datasets.robomimic import EpisodeError as EpisodeError
from specpolicy.datasets.robomimic import read_attributes as read_attributes
from specpolicy.datasets.robomimic import read_episodes as read_episodes
from specpolicy.datasets.robomimic import write_demonstrations as write_demonstrations
