"""A client in a process of its own, over TLS, on a line with 100 ms of delay and losses that is cut
for a minute: it goes on by its policy, and catches up. Every row is there once.
"""

import subprocess
import sys
import time

import pytest

from tests.worldloom_client.live import Live
from tests.worldloom_client.relay import Relay
from tests.worldloom_client.test_cut_off import check_all, sources
from tests.worldloom_client.test_feed import wait_until
from tests.worldloom_dist.gateway.certificates import make_authority, make_signed
from tests.worldloom_dist.gateway.parts import KeptShard, contract_of
from worldloom_dist.gateway.server import Access

TOKEN = "0123456789abcdef0123456789abcdef"
CUT_S = 60.0
STEPS = {"wait": 150, "spool": 1350}
CLIENT = """
import json, sys, time
import numpy as np
from worldloom.envs.toy import CountingEnv
from worldloom_client import connect
folder, address, on_hold, steps = sys.argv[1:]
settings = {"ca": folder + "/ca.pem", "token": folder + "/token", "timeout_s": 120}
if on_hold != "wait":
    still = np.array([0.0, 0.25], np.float32)
    settings |= {"spool": folder + "/spool", "fallback": lambda obs, env: still}
env = CountingEnv()
obs, reward, terminated, truncated = env.reset(seed=0)[0], 0.0, False, False
longest = 0.0
with connect(address, on_hold=on_hold, **settings) as session:
    for step in range(int(steps)):
        began = time.monotonic()
        action = session.act(obs, reward, terminated=terminated, truncated=truncated)
        longest = max(longest, time.monotonic() - began)
        if terminated or truncated:
            obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
        else:
            obs, reward, terminated, truncated, _ = env.step(action)
        if on_hold != "wait":
            time.sleep(0.05)
print(json.dumps({"longest_s": longest, "sessions": len(session.streams),
                  "skipped": session.rows_skipped, "left": session.spooled_bytes}))
"""


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("on_hold", ["wait", "spool"])
def test_a_client_goes_on_through_a_cut_of_a_minute_and_catches_up(on_hold, tmp_path) -> None:
    import json

    make_signed(tmp_path, make_authority(tmp_path), "server")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    access = Access(
        certificate=tmp_path / "server.pem", key=tmp_path / "server.key", token_file=token
    )
    shard = KeptShard(contract_of().columns, tmp_path / "shard")
    server = Live(access, shard=shard, contract=contract_of(lease_s=5.0))
    relay = Relay(server.thread.port, delay_s=0.05, stall=0.05)
    words = [str(tmp_path), relay.address, on_hold, str(STEPS[on_hold])]
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: server.rig.gateway.meter.questions > 60, 60)
        relay.cut()
        time.sleep(CUT_S)
        assert client.poll() is None
        assert server.rig.gateway.num_sessions == 0  # its lease is over
        relay.mend()
        out, err = client.communicate(timeout=250)
        assert client.returncode == 0, err
    finally:
        client.kill()
        relay.close()
        server.thread.stop(1.0)
    told = json.loads(out)
    assert told["sessions"] == 2
    assert told["skipped"] == told["left"] == 0
    check_all(shard, STEPS[on_hold])
    if on_hold == "wait":
        assert told["longest_s"] >= CUT_S
        assert set(sources(shard)) == {1}
    else:
        assert told["longest_s"] < CUT_S / 10
        assert sources(shard)[4] > 500
