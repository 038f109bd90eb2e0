"""Machines that lack what most have: a loopback, an entry of the user, a way past a proxy."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from requests.utils import should_bypass_proxies

from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import ConfigurationError
from worldloom.factory import cache_dir
from worldloom_dist.job import job_words
from worldloom_dist.run.checks import check_address
from worldloom_dist.run.config import RunConfig
from worldloom_dist.runtime.cluster import choose_auth_mode
from worldloom_dist.runtime.jobs import _pass_by_proxies

NO_ENTRY = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]


def can(*words: str) -> bool:
    """True when this machine lets a program of ours run so."""
    return bool(shutil.which(words[0])) and (
        subprocess.run([*words, "true"], capture_output=True, timeout=20, check=False).returncode
        == 0
    )


def test_a_private_cluster_without_a_loopback_is_refused(monkeypatch):
    def cannot(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", cannot)
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1 .* run: ip link set lo up"):
        check_address(RunConfig())
    check_address(RunConfig(runtime="local"))


@pytest.mark.parametrize(("address", "host"), [("[::1]:6379", "::1"), ("10.0.0.7:1", "10.0.0.7")])
def test_a_cluster_s_address_of_ipv6_is_asked_without_its_brackets(monkeypatch, address, host):
    asked = []

    def connect(where: tuple[str, int], **_: object) -> object:
        asked.append(where[0])
        raise OSError("no one is there")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ConfigurationError, match="nothing answers at"):
        check_address(RunConfig(address=address))
    assert asked == [host]


@pytest.mark.skipif(not can("unshare", "--net"), reason="network namespaces need root")
def test_a_machine_whose_loopback_is_down_says_so(tmp_path):
    folder = tmp_path / "run"
    words = ["-m", "worldloom_dist.launch", "--preset", "debug", "--run-dir", str(folder)]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert "run: ip link set lo up" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_no_proxy_is_asked_for_this_machine(monkeypatch, name, host):
    for other in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    _pass_by_proxies(f"http://{host}:8265")
    assert should_bypass_proxies(f"http://{host}:8265/api", None)
    assert should_bypass_proxies("http://intranet.example/", None)
    assert not should_bypass_proxies("http://cluster.example:8265/", None)
    _pass_by_proxies("http://cluster.example:8265")
    assert not should_bypass_proxies("http://cluster.example:8265/", None)


@pytest.fixture
def _homeless(monkeypatch):
    """A user without a home, as one without an entry in passwd whose HOME is not set."""
    for name in ("HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WORLDLOOM_RUNS", "WORLDLOOM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)


@pytest.mark.usefixtures("_homeless")
def test_a_user_without_a_home_is_told_where_one_is_needed_and_else_works():
    with pytest.raises(RuntimeError):
        Path.home()
    assert choose_auth_mode() == "disabled"
    assert not cache_dir().exists()
    with pytest.raises(ConfigurationError, match="WORLDLOOM_RUNS"):
        job_words([], "run-1")
    assert "--run-dir" in job_words(["--run-dir", "r"], "run-1")


@pytest.mark.skipif(not can(*NO_ENTRY), reason="this machine has no user namespaces")
def test_a_user_without_an_entry_trains(tmp_path):
    words = ["-m", "worldloom_dist.launch", *TINY["tdmpc2:ci"], "--env", "toy:point"]
    words += ["--workers", "1", "--env-steps", "30", "--run-dir", str(tmp_path / "run")]
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "USERNAME")}
    done = subprocess.run(
        [*NO_ENTRY, sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=100,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
