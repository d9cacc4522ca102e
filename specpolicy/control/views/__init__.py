"""Views: whoever watches a control loop."""

from .rerun import RerunView as RerunView
from .terminal import TerminalView as TerminalView
from .view import View as View
