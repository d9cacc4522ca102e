"""Where units of work are run: in this process, or in workers of a Ray cluster."""

from specpolicy.evaluation.launchers.local import Launcher as Launcher
from specpolicy.evaluation.launchers.local import LauncherError as LauncherError
from specpolicy.evaluation.launchers.local import LocalLauncher as LocalLauncher
from specpolicy.evaluation.launchers.ray import RayLauncher as RayLauncher
