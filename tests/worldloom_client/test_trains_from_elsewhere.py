"""A program on another machine, without torch and Ray, brings the only env of a run, over TLS: the
run learns Pendulum as well as the demo does with workers of its own.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.running import PATIENCE, launched
from tests.ports import free_port
from tests.worldloom_client.test_other_machine import TOKEN, has_namespaces, other_machine
from tests.worldloom_dist.gateway.certificates import make_authority, make_signed

CLIENT = f"{Path(__file__).parents[2] / 'worldloom_client'}[env]"
NEEDS = ("hatchling", "grpcio", "protobuf", "gymnasium")
"""Of others: without an index nothing can be installed; what fails after them is our fault."""
LEAST_RETURN = -300.0
"""The demo comes to about -165, a random policy to -1,200."""
LACKS = "import importlib.util as u; print([n for n in ('torch', 'ray') if u.find_spec(n)])"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Of a venv with the client and what that needs."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    found = folder / "bin" / "python"
    install = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    needs = subprocess.run([*install, *NEEDS], capture_output=True, text=True, check=False)
    if needs.returncode:
        pytest.skip(f"pip cannot install {', '.join(NEEDS)} here: {needs.stderr[-300:]}")
    done = subprocess.run([*install, CLIENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = subprocess.run([str(found), "-c", LACKS], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    return found


@pytest.mark.ray
@pytest.mark.learn
@pytest.mark.long
@pytest.mark.timeout(1800 * PATIENCE)
def test_a_client_without_torch_in_another_namespace_trains_pendulum(python, tmp_path) -> None:
    if not has_namespaces():
        pytest.skip("network namespaces cannot be made here (needs root and iproute2)")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    folder = tmp_path / "run"
    port = str(free_port())
    words = ["--preset", "quick", "--workers", "0", "--run-dir", str(folder)]
    words += ["--gateway-port", port, "--metrics-port", "0"]
    words += ["--gateway.tls-cert", str(tmp_path / "server.pem")]
    words += ["--gateway.tls-key", str(tmp_path / "server.key")]
    words += ["--gateway.token-file", str(token)]
    with contextlib.ExitStack() as stack:
        namespace, _, host = stack.enter_context(other_machine())
        make_signed(tmp_path, make_authority(tmp_path), "server", host)
        run = stack.enter_context(launched(folder, *words, "--gateway.host", host))
        command = ["ip", "netns", "exec", namespace, str(python), "-m", "worldloom_client"]
        command += ["--env", "gym:Pendulum-v1", "--address", f"{host}:{port}", "--seed", "0"]
        command += ["--ca", str(tmp_path / "ca.pem"), "--token-file", str(token)]
        with (tmp_path / "client.out").open("w") as out:
            client = subprocess.Popen(
                [*command, "--timeout", "120"],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            )
            try:
                run.wait_until(lambda: run.has_ended or client.poll() is not None, 1500)
                run.wait_until(lambda: run.has_ended, 180)  # its last evaluation
            finally:
                client.terminate()
                client.wait(30)
    summary = run.summary()
    returns = summary["eval"]["returns"]
    print(f"median return {np.median(returns):.1f}, mean {np.mean(returns):.1f}")
    told = (tmp_path / "client.out").read_text()
    assert run.process.returncode == 0, run.output.read_text()
    assert "Traceback" not in told
    assert summary["gateway"]["rows"] >= 5_000
    assert summary["rows"]["inserted"] == summary["gateway"]["rows"]
    assert len(returns) == 20
    assert np.median(returns) >= LEAST_RETURN, told
