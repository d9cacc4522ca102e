"""What a control loop shows to whoever watches."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium

from specpolicy.control.account import EpisodeAccount


class View(Protocol):
    """Watches episodes; what takes long here is taken from the tick."""

    def begin(self, account: EpisodeAccount) -> None:
        """An episode begins."""
        ...

    def tick(self, account: EpisodeAccount, env: gymnasium.Env[Any, Any]) -> None:
        """A tick has been played; it is the last one of the account."""
        ...

    def end(self, account: EpisodeAccount) -> None:
        """The episode is over."""
        ...
