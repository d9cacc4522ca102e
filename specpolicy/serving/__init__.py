"""A policy behind a websocket: the server beside the GPU, a thin client on the robot.

What is imported here is the client's side, which needs numpy, msgpack and websockets; the server is
:mod:`specpolicy.serving.server`. The protocol (:mod:`~specpolicy.serving.protocol`)
is msgpack, because it is quick, is spoken by every language and cannot carry code; it is that of openpi, so that its
client works with this server.
"""

from specpolicy.serving import requirements as _requirements  # noqa: F401
from specpolicy.serving.client import Client as Client
from specpolicy.serving.client import Reply as Reply
from specpolicy.serving.client import Timing as Timing
from specpolicy.serving.protocol import ConnectionLost as ConnectionLost
from specpolicy.serving.protocol import FrameError as FrameError
from specpolicy.serving.protocol import ProtocolError as ProtocolError
from specpolicy.serving.protocol import RequestRefused as RequestRefused
from specpolicy.serving.protocol import RequestTimeout as RequestTimeout
from specpolicy.serving.protocol import RequestTooLarge as RequestTooLarge
from specpolicy.serving.protocol import ServerFailed as ServerFailed
from specpolicy.serving.protocol import ServerUnavailable as ServerUnavailable
from specpolicy.serving.protocol import ServingError as ServingError
from specpolicy.serving.protocol import Unauthorized as Unauthorized
