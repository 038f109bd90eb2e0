"""Make each secret once: ``make_secrets.py FILE:UID ...``, or ``FILE:UID,FILE:UID`` for one that
two users read. A file that exists is left alone; only its owner can read it.
"""

import os
import secrets
import sys
from pathlib import Path

for word in sys.argv[1:]:
    copies = [copy.rpartition(":") for copy in word.split(",")]
    known = [Path(name).read_text() for name, _, _ in copies if Path(name).exists()]
    secret = known[0] if known else secrets.token_hex(32)
    for name, _, owner in copies:
        path = Path(name)
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secret)
        os.chown(path, int(owner), int(owner))
