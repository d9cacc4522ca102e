"""Starts servers on request: imports once, then forks one for each line of JSON that it reads.

A line names the port and the seconds of an inference. Answered with a line of JSON: the server's process and address.
Once a server ends, another line tells its exit status.
"""

from __future__ import annotations

import json
import os
import sys

from serving_fakes import EchoEngine

from specpolicy.serving.server import PolicyServer, ServerSettings, run_until_stopped


def say(**what: object) -> None:
    """One line, whole even when parent and child speak at once."""
    os.write(1, (json.dumps(what) + "\n").encode())


def serve(port: int, seconds: float) -> None:
    server = PolicyServer(EchoEngine(seconds), ServerSettings(port=port, max_wait_ms=0, grace_s=20.0))
    run_until_stopped(server, lambda url: say(pid=os.getpid(), url=url))


if __name__ == "__main__":
    say(ready=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            serve(**json.loads(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say(ended=os.waitstatus_to_exitcode(status))
