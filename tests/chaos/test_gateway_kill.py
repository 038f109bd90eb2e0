"""How long a client waits after a gateway is killed, and that nothing is lost meanwhile."""

import contextlib
import os
import signal
import time

import pytest

from tests.chaos.test_gateway_chaos import WORDS, Client, check
from tests.integration.running import PATIENCE, launched, read_journals
from tests.ports import free_port

KILLS = 3
FIRST_ANSWER_WITHIN_S = 3.0
STEADY_S = 8.0
"""One that dies sooner after its start is started again only after a pause."""


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.parametrize("inference", ["central", "local"])
@pytest.mark.timeout(400 * PATIENCE)
def test_a_client_is_answered_soon_after_its_gateway_is_killed(inference, tmp_path) -> None:
    folder = tmp_path / "run"
    port = free_port()
    words = [word if word != "central" else inference for word in WORDS]
    words += ["--gateway-port", str(port), "--run-dir", str(folder)]
    waited = []
    with launched(folder, *words) as run:
        client = Client(port)
        run.wait_until(lambda: client.steps > 300 or client.error, 90)
        for _ in range(KILLS):
            client.longest_s = 0.0
            before = len(client.streams)
            for pid in run.pids("ray::GatewayRole"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.wait_until(lambda before=before: len(client.streams) > before or client.error, 60)
            steps = client.steps
            run.wait_until(lambda steps=steps: client.steps > steps + 50 or client.error, 60)
            waited.append(client.longest_s)
            time.sleep(STEADY_S)
        client.end()
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.finish() == 0
        summary = run.summary()
    print(f"{inference}: first answers after {', '.join(f'{s:.2f}' for s in waited)} s")
    assert check(client, read_journals(folder)) == summary["rows"]["inserted"]
    assert max(waited) <= FIRST_ANSWER_WITHIN_S * PATIENCE, waited
