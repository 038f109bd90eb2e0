"""Make each secret once: ``make_secrets.py FILE:UID ...``, or ``FILE:UID,FILE:UID`` for one that
two users read. A file that has one is left alone; only its owner can read it.
"""

import os
import secrets
import sys
from pathlib import Path

for word in sys.argv[1:]:
    copies = [copy.rpartition(":") for copy in word.split(",")]
    texts = [Path(name).read_text() for name, _, _ in copies if Path(name).exists()]
    known = [text for text in texts if text]  # a start that was cut off leaves an empty file
    secret = known[0] if known else secrets.token_hex(32)
    for name, _, owner in copies:
        path = Path(name)
        if not path.exists() or not path.read_text():
            fresh = path.with_name(f"{path.name}.tmp")
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600)
            fresh.write_text(secret)
            os.replace(fresh, path)
        os.chown(path, int(owner), int(owner))
