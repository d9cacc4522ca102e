"""Training policies from demonstrations."""

from .chunks import Chunks as Chunks
from .chunks import cut_chunks as cut_chunks
from .demonstrations import DemonstrationError as DemonstrationError
from .demonstrations import read_demonstrations as read_demonstrations
from .loop import ResumeError as ResumeError
from .loop import TrainingSettings as TrainingSettings
from .train import train_policy as train_policy
