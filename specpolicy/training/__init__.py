"""Training policies from demonstrations."""

from .chunks import Chunks as Chunks
from .chunks import cut_chunks as cut_chunks
from .demonstrations import DemonstrationError as DemonstrationError
from .demonstrations import read_demonstrations as read_demonstrations
from .train import train_policy as train_policy
from .trainer import ResumeError as ResumeError
from .trainer import TrainingSettings as TrainingSettings
