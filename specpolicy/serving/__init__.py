"""A policy behind a websocket: the server beside the GPU, a thin client on the robot.

What is imported here is the client's side, which needs numpy, msgpack and websockets; the server is
:mod:`specpolicy.serving.server`. The protocol (:mod:`~specpolicy.serving.wire`, :mod:`~specpolicy.serving.messages`)
is msgpack, because it is quick, is spoken by every language and cannot carry code; it is that of openpi, so that its
client works with this server.
"""

from . import _requirements as _requirements
from .client import Client as Client
from .errors import ConnectionLost as ConnectionLost
from .errors import FrameError as FrameError
from .errors import ProtocolError as ProtocolError
from .errors import RequestRefused as RequestRefused
from .errors import RequestTimeout as RequestTimeout
from .errors import RequestTooLarge as RequestTooLarge
from .errors import ServerFailed as ServerFailed
from .errors import ServerUnavailable as ServerUnavailable
from .errors import ServingError as ServingError
from .errors import Unauthorized as Unauthorized
from .reply import Reply as Reply
from .reply import Timing as Timing
