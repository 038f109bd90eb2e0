"""Make each secret once: ``make_secrets.py FILE:UID ...``. A file that exists is left alone; only
its owner can read it.
"""

import os
import secrets
import sys
from pathlib import Path

for word in sys.argv[1:]:
    name, _, owner = word.rpartition(":")
    path = Path(name)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    os.chown(path, int(owner), int(owner))
