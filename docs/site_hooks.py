"""What the site does beyond mkdocs: docstrings mark names as Sphinx does, which would show raw."""

import re
from typing import Any

ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc):<code>~?([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """``:class:`X` `` becomes ``X``."""
    return ROLE.sub(r"<code>\1</code>", html)
