"""Training policies from demonstrations."""

from specpolicy.datasets.action_chunks import ActionChunkDataset as ActionChunkDataset
from specpolicy.datasets.action_chunks import cut_action_chunks as cut_action_chunks
from specpolicy.datasets.demonstrations import read_demonstrations as read_demonstrations
from specpolicy.datasets.robomimic import DemonstrationError as DemonstrationError
from specpolicy.training.loop import ResumeError as ResumeError
from specpolicy.training.loop import TrainingDiverged as TrainingDiverged
from specpolicy.training.loop import TrainingSettings as TrainingSettings
from specpolicy.training.train import train_policy as train_policy
from specpolicy.utils.run_identity import OtherRunError as OtherRunError
