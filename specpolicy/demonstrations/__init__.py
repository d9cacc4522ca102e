"""Demonstrations in robomimic's HDF5 layout: written, read back, and recorded from experts."""

from __future__ import annotations

from .crew import RecordingError as RecordingError
from .layout import Episode as Episode
from .layout import EpisodeError as EpisodeError
from .layout import write_demonstrations as write_demonstrations
from .parts import OtherRecording as OtherRecording
from .reading import read_attributes as read_attributes
from .reading import read_episodes as read_episodes
from .recorded import Recorded as Recorded
from .recording import RecordingSettings as RecordingSettings
from .recording import record_demonstrations as record_demonstrations
