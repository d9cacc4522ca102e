"""Serve a policy over a websocket: the server beside the GPU, a thin client on the robot.

Imported here is the client's side, which needs numpy, msgpack, websockets and tenacity; the server is
:mod:`specpolicy.serving.server`. The protocol (:mod:`~specpolicy.serving.protocol`) is msgpack as openpi writes it, so
openpi's client works with this server; it cannot carry code.
"""

# ruff: noqa: E402 - what is missing is reported with the extra that brings it, before anything else is imported

from specpolicy.utils.extras import require as _require

for _module in ("msgpack", "websockets", "tenacity"):
    _require(_module, "serving")

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
