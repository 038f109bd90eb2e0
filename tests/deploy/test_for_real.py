"""Compose, and ``ray up`` over ssh, for real on this machine; needs root and the tools that the
scripts name.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VENV = Path(sys.prefix)
TOOLS = {
    "compose_for_real.sh": ("podman", "podman-compose", "debootstrap", "prometheus", "rsync"),
    "ray_up_for_real.sh": ("ip", "nsenter", "sshd", "ssh", "rsync"),
}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("script", TOOLS)
def test_a_cluster_trains_loses_a_machine_and_goes_on(script, tmp_path):
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [tool for tool in TOOLS[script] if shutil.which(tool, path=path) is None]
    if os.geteuid() != 0:
        missing.insert(0, "root")
    if missing:
        pytest.skip(f"{script} needs {', '.join(missing)}, which is missing here")
    done = subprocess.run(
        [str(HERE / script), str(tmp_path / "work")],
        env={**os.environ, "VENV": str(VENV), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "everything holds" in done.stdout
