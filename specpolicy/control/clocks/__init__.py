"""Clocks: what time it is for a control loop, and what computing costs."""

from .charged import ChargedClock as ChargedClock
from .clock import Clock as Clock
from .clock import Running as Running
from .real_time import RealTimeClock as RealTimeClock
