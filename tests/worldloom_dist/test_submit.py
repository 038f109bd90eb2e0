"""The submitting side, against a job interface that is played: what is sent, what is shown, what
comes back.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom_dist import submit as module
from worldloom_dist.runtime import jobs
from worldloom_dist.runtime.jobs import SUMMARY_MARK

SUMMARY = (
    SUMMARY_MARK + json.dumps({"run_dir": "/runs/j", "summary": {"status": "completed"}}) + "\n"
)


class FakeClient:
    """Plays attempts in order; each is (status at the end, exit status, log)."""

    def __init__(self, *attempts, chunk: int = 7):
        self.attempts = list(attempts)
        self.chunk = chunk
        self.sent = []
        self.stopped = []
        self.deleted = []

    def list_jobs(self):
        return (
            [SimpleNamespace(submission_id=self.sent[-1]["submission_id"], status=self._status())]
            if self.sent
            else []
        )

    def delete_job(self, job_id):
        self.deleted.append(job_id)

    def submit_job(self, **what):
        self.sent.append(what)

    def stop_job(self, job_id):
        self.stopped.append(job_id)

    def get_job_status(self, job_id):
        return self._status()

    def get_job_logs(self, job_id):
        return self._now()[2]

    def get_job_info(self, job_id):
        return SimpleNamespace(
            status=self._status(), driver_exit_code=self._now()[1], message="because"
        )

    async def tail_job_logs(self, job_id):
        text = self._now()[2]
        for start in range(0, len(text), self.chunk):
            yield text[start : start + self.chunk]

    def _now(self):
        return self.attempts[min(len(self.sent), len(self.attempts)) - 1]

    def _status(self):
        return SimpleNamespace(value=self._now()[0])


@pytest.fixture
def play(monkeypatch):
    def use(*attempts) -> FakeClient:
        client = FakeClient(*attempts)
        monkeypatch.setattr(module, "connect", lambda *_: client)
        monkeypatch.setattr(jobs, "LOOK_EVERY_S", 0.001)
        return client

    return use


def test_a_job_brings_back_its_log_once_its_summary_and_its_exit_status(play):
    client = play(("SUCCEEDED", 0, "one\ntwo\n" + SUMMARY))
    heard = []
    result = module.submit(["--env", "toy:point"], job_id="j", write=heard.append)
    assert "".join(heard).endswith("one\ntwo\n")
    assert (result.status, result.exit_status, result.run_dir) == ("SUCCEEDED", 0, "/runs/j")
    assert result.summary == {"status": "completed"}
    (sent,) = client.sent
    assert sent["entrypoint"] == "exec python -m worldloom_dist.job --job-id j -- --env toy:point"
    assert sent["runtime_env"]["working_dir"] == "."


def test_the_commit_of_what_is_uploaded_goes_with_it(play, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLDLOOM_COMMIT", "0123456789ab-dirty")
    client = play(("SUCCEEDED", 0, ""))
    module.submit([], working_dir=tmp_path)
    variables = client.sent[0]["runtime_env"]["env_vars"]
    assert variables["WORLDLOOM_COMMIT"] == "0123456789ab-dirty"
    monkeypatch.delenv("WORLDLOOM_COMMIT")
    module.submit([], working_dir=tmp_path)
    assert "WORLDLOOM_COMMIT" not in client.sent[1]["runtime_env"]["env_vars"]


def test_nothing_of_this_machines_environment_is_sent(play, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    client = play(("SUCCEEDED", 0, ""))
    module.submit([], working_dir=None)
    assert "hunter2" not in str(client.sent)
    assert "working_dir" not in client.sent[0]["runtime_env"], "the image has what it needs"


def test_a_job_that_failed_is_submitted_again_under_its_id_but_wrong_input_is_not(play):
    client = play(("FAILED", 1, "x\n"), ("SUCCEEDED", 0, SUMMARY))
    assert module.submit([], job_id="j", retries=2).exit_status == 0
    assert len(client.sent) == 2
    assert client.deleted == ["j"]
    client = play(("FAILED", 2, ""))
    assert module.submit([], job_id="j", retries=2).exit_status == 2
    assert len(client.sent) == 1


@pytest.mark.parametrize("code", [None, -9])
def test_a_lost_driver_counts_as_failed(play, code):
    play(("FAILED", code, ""))
    assert module.submit([]).exit_status == 1


def test_a_job_that_never_starts_is_withdrawn(play):
    client = play(("PENDING", None, ""))
    with pytest.raises(StateError, match="did not start within 0 s"):
        module.submit([], job_id="j", start_timeout_s=0.0)
    assert client.stopped == ["j"]


def test_a_running_job_keeps_its_id(play):
    client = play(("RUNNING", None, ""))
    client.sent.append({"submission_id": "j"})
    with pytest.raises(ConfigurationError, match="is RUNNING already"):
        module.submit([], job_id="j")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--", "--wrokers", "3"], "did you mean --workers"),
        (["--working-dir", "/nowhere", "--"], "/nowhere is not a folder"),
        (["--address", "head:8265", "--"], "like http://HEAD:8265"),
        (["--address", "http://127.0.0.1:9", "--"], "no job interface answers"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(words, says, capsys):
    assert module.main(words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_the_command_prints_the_summary_and_writes_it(play, tmp_path: Path, capsys):
    play(("SUCCEEDED", 0, SUMMARY))
    assert module.main(["--summary", str(tmp_path / "s.json"), "--", "--seed", "2"]) == 0
    assert (
        json.loads(capsys.readouterr().out)
        == json.loads((tmp_path / "s.json").read_text())
        == {"status": "completed"}
    )


def test_summary_that_cannot_be_written_is_said_after_it_was_printed(play, tmp_path, capsys):
    path = tmp_path / "s.json"
    path.symlink_to(tmp_path / "gone" / "s.json")
    play(("SUCCEEDED", 0, SUMMARY))
    assert module.main(["--summary", str(path), "--", "--seed", "2"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"status": "completed"}
    assert f"error: --summary: {path} cannot be written (No such file" in shown.err


def test_stopping_a_job_says_how_its_run_ended(play):
    client = play(
        (
            "STOPPED",
            None,
            SUMMARY_MARK + json.dumps({"run_dir": "/r", "summary": {"status": "stopped"}}) + "\n",
        )
    )
    client.sent.append({"submission_id": "j"})
    assert module.stop("j").exit_status == 0
    assert client.stopped == ["j"]


def test_in_the_foreground_a_running_job_is_followed_and_an_interrupt_stops_it(
    play, monkeypatch, capsys
):
    client = play(("STOPPED", None, SUMMARY))
    client.sent.append({"submission_id": "j"})
    monkeypatch.setattr(module, "job_state", lambda client, job_id: "RUNNING")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "follow_job", interrupted)
    monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
    assert module.main(["--foreground", "--job-id", "j", "--"]) == 0
    assert client.stopped == ["j"]
    assert len(client.sent) == 1, "no second job"
    assert module.main(["--foreground", "--"]) == 2
    assert "needs --job-id" in capsys.readouterr().err


def test_an_interface_that_breaks_off_gets_the_job_once(play, monkeypatch):
    client = play(("SUCCEEDED", 0, SUMMARY))
    accept = client.submit_job
    failures = [ConnectionError("closed"), ConnectionError("closed")]

    def break_off(**what):
        if len(failures) == 1:
            accept(**what)
        if failures:
            raise failures.pop()
        accept(**what)

    monkeypatch.setattr(client, "submit_job", break_off)
    assert module.submit([], job_id="j").exit_status == 0
    assert len(client.sent) == 1


@pytest.mark.parametrize(
    "job_id", ["team/walker", "", ".hidden", "..", "a b", "a" * 129, "ümlaut", "-x"]
)
def test_id_that_cannot_name_a_job_and_a_folder_is_refused_before_anything_is_sent(play, job_id):
    client = play(("SUCCEEDED", 0, ""))
    for ask in (
        lambda: module.submit([], job_id=job_id),
        lambda: module.follow(job_id),
        lambda: module.stop(job_id),
    ):
        with pytest.raises(
            ConfigurationError, match=r"job_id must be 1 to 128 letters.*got .*; name another one"
        ):
            ask()
    assert client.sent == client.stopped == []


class RacedClient(FakeClient):
    """Another client submits a job of the same id just before ours arrives."""

    def submit_job(self, **what):
        super().submit_job(**what)
        raise RuntimeError(
            "Request failed with status code 500: Traceback (most recent call "
            "last):\n x\nValueError: taken.\n"
        )


def test_loser_of_two_submits_at_the_same_moment_is_told_so(play, monkeypatch):
    client = RacedClient(("RUNNING", None, ""))
    play()
    monkeypatch.setattr(module, "connect", lambda *_: client)
    with pytest.raises(
        ConfigurationError,
        match="'j' was submitted by another client at the same moment and is RUNNING; follow",
    ):
        module.submit([], job_id="j")


def test_what_the_cluster_raises_is_told_by_the_last_line_of_its_traceback(play, monkeypatch):
    client = RacedClient(("RUNNING", None, ""))
    play()
    monkeypatch.setattr(module, "connect", lambda *_: client)
    monkeypatch.setattr(client, "list_jobs", list)
    with pytest.raises(ConfigurationError, match=r"'j' was not accepted: ValueError: taken$"):
        module.submit([], job_id="j")


@pytest.mark.parametrize("words", [["--follow", "j"], ["--stop", "j"]])
def test_an_interface_that_is_at_fault_itself_is_one_sentence(words, play, monkeypatch, capsys):
    client = play(("RUNNING", None, ""))

    def at_fault(*_):
        raise RuntimeError("Request failed with status code 500: GCS is away.")

    for name in ("list_jobs", "get_job_status"):
        monkeypatch.setattr(client, name, at_fault, raising=False)
    assert module.main(words) == 1
    error = capsys.readouterr().err
    assert "the job interface went away (Request failed with status code 500" in error
    assert error.count("\n") == 1


def test_job_that_the_cluster_does_not_know_is_not_followed(play):
    play(("RUNNING", None, ""))
    with pytest.raises(ConfigurationError, match="knows no such job"):
        module.follow("j")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--retries", "-1"], "retries must be an integer >= 0, got -1"),
        (["--start-timeout", "nan"], "start_timeout must be a finite number >= 0, got nan"),
        (["--summary", "/no/such/folder/s.json"], "summary: /no/such/folder is no folder"),
        (["--summary", "/"], "summary: / is a folder; name a file in it"),
    ],
)
def test_wrong_options_are_refused_with_status_2_before_anything_is_sent(play, capsys, words, says):
    client = play(("SUCCEEDED", 0, ""))
    assert module.main([*words, "--"]) == 2
    assert says in capsys.readouterr().err
    assert client.sent == []
