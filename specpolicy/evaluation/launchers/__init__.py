"""Where units of work are run: in this process, or in workers of a Ray cluster."""

from .launcher import Launcher as Launcher
from .launcher import LauncherError as LauncherError
from .local import LocalLauncher as LocalLauncher
from .ray import RayLauncher as RayLauncher
