"""Who may read the endpoint, and where its secret comes from."""

import base64
import contextlib
import socket
import urllib.error
import urllib.request

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.metrics.endpoint import AUTH_VARIABLE, read_secret, serve
from worldloom_dist.metrics.hub import MetricsHub
from worldloom_dist.run import checks
from worldloom_dist.run.checks import choose_port
from worldloom_dist.run.config import RunConfig


@contextlib.contextmanager
def endpoint(secret=""):
    server, port = serve(MetricsHub("r1"), "127.0.0.1", 0, secret)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()


def status(url, authorization=None, host=None):
    headers = {"Authorization": authorization, "Host": host}
    request = urllib.request.Request(
        url, headers={name: value for name, value in headers.items() if value}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_token_opens_the_endpoint_and_nothing_else_does():
    with endpoint("0123456789abcdef") as url:
        code, text = status(url + "/metrics")
        assert code == 401
        assert "worldloom" not in text
        assert status(url + "/metrics", "Bearer 0123456789abcdeX")[0] == 401
        assert status(url + "/metrics", basic("u:0123456789abcdef"))[0] == 401
        assert status(url + "/metrics", "Bearer 0123456789abcdef")[0] == 200
        assert status(url + "/healthz") == (200, "ok\n")


def test_a_user_and_a_password_open_the_endpoint_and_nothing_else_does():
    with endpoint("prometheus:s3cret-word") as url:
        assert status(url + "/metrics")[0] == 401
        assert status(url + "/metrics", "Bearer prometheus:s3cret-word")[0] == 401
        assert status(url + "/metrics", "Basic not-base64!")[0] == 401
        assert status(url + "/metrics", basic("prometheus:wrong"))[0] == 401
        assert "worldloom_run_info" in status(url + "/metrics", basic("prometheus:s3cret-word"))[1]


def test_only_metrics_are_served():
    with endpoint() as url:
        assert status(url + "/metrics")[0] == 200
        assert status(url + "/config.json")[0] == 404


def test_the_secret_comes_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "token"
    file.write_text("abcdefgh12345678\n")
    file.chmod(0o640)
    assert read_secret(file, {AUTH_VARIABLE: "other-secret"}) == "abcdefgh12345678"
    assert read_secret(None, {AUTH_VARIABLE: "user:password"}) == "user:password"
    assert read_secret(None, {}) == ""


@pytest.mark.parametrize("text", ["", "short", "pässwörter-mit-umlaut"])
def test_what_is_no_secret_is_refused_without_being_repeated(tmp_path, text):
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="at least 8") as caught:
        read_secret(file)
    assert not text or text not in str(caught.value)


def test_a_secret_that_cannot_be_read_or_that_anybody_may_change_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_secret(tmp_path / "nothing")
    file = tmp_path / "token"
    file.write_text("abcdefgh12345678")
    for mode in (0o666, 0o644, 0o602):
        file.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.*chmod 600"):
            read_secret(file)


def test_a_page_of_the_web_cannot_read_the_endpoint_by_a_name_of_its_own():
    with endpoint() as url:
        port = url.rpartition(":")[2]
        for host in (f"127.0.0.1:{port}", f"[::1]:{port}", f"localhost:{port}", "10.0.0.7"):
            assert status(url + "/metrics", host=host)[0] == 200, host
        for host in (f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil", "[x"):
            code, said = status(url + "/metrics", host=host)
            assert code == 403, host
            assert "--metrics-auth-file" in said
    with endpoint("0123456789abcdef") as url:
        bearer = "Bearer 0123456789abcdef"
        assert status(url + "/metrics", bearer, host="run.example")[0] == 200


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_the_endpoint_answers_on_ipv6_too():
    assert choose_port(RunConfig(metrics_host="::1")) > 0
    server, port = serve(MetricsHub("r1"), "::1", 0)
    try:
        assert status(f"http://[::1]:{port}/healthz") == (200, "ok\n")
    finally:
        server.shutdown()
        server.server_close()


def test_where_no_port_is_free_the_run_says_that_it_serves_nothing(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(checks, "DEFAULT_PORT", port)
        monkeypatch.setattr(checks, "PORTS_TRIED", 1)
        assert choose_port(RunConfig()) == 0
    assert f"serves no metrics and no page: the ports {port} to {port}" in caplog.text
