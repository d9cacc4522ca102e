"""Show Sphinx roles in docstrings as plain code: mkdocstrings reads Google style, not reStructuredText."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod):\s*(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Strip the roles from a rendered page, and the colon that announces a literal block.

    Args:
        html: of the page.

    Returns:
        The page without them.
    """
    return re.sub(r"::</p>", ":</p>", _ROLE.sub("", html))
