"""The script that goes to Slurm: what it asks for, and what it makes of signals and exit statuses;
Slurm itself is played (``tests/integration/test_slurm.py`` has a real one).
"""

import os
import signal
import subprocess
import sys

import pytest

from tests.waiting import wait_until
from worldloom_dist import submit
from worldloom_dist.run import slurm as module
from worldloom_dist.run.slurm import SlurmJob, sbatch_script

POINT = ("--env", "toy:point")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_script_asks_for_what_was_said_and_is_one_that_bash_reads(capsys):
    words = (
        "--slurm --dry-run --slurm.nodes 3 --slurm.cpus 8 --slurm.gpus 2 --slurm.time 1-12:00:00"
    )
    words += " --slurm.partition gpu --slurm.account lab --slurm.warn-s 300 --job-id walk"
    extra = ["--sbatch-arg=--qos=high", "--slurm.setup", "module load cuda", "--python", "/opt/py"]
    assert submit.main([*words.split(), *extra, "--", *POINT, "--agent", "tdmpc2:ci"]) == 0
    text = capsys.readouterr().out
    asked = {line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line}
    assert asked >= {
        *("--job-name=walk", "--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=8"),
        *("--gpus-per-node=2", "--time=1-12:00:00", "--partition=gpu", "--account=lab"),
        *("--signal=B:USR1@300", "--requeue", "--exclusive", "--qos=high"),
        "--open-mode=append",
    }
    assert text.index("module load cuda") < text.index("PYTHON=/opt/py")
    assert "symmetric-run" in text
    assert '--run-dir "runs/walk-$SLURM_JOB_ID" --if-exists resume)' in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)
    assert not os.listdir(), "nothing is written"


def test_a_folder_that_the_flags_name_is_the_one_that_goes_on():
    text = sbatch_script(SlurmJob(), [*POINT, "--run-dir", "out/a b"])
    assert "RUN_DIR='out/a b'" in text
    assert "FLAGS=(--env toy:point --run-dir 'out/a b' --if-exists resume)" in text
    text = sbatch_script(SlurmJob(), ["--resume", "runs/x", "--env-steps", "9"])
    assert "FLAGS=(--resume runs/x --env-steps 9)" in text
    assert "--exclusive" not in text
    assert "SYMMETRIC=\n" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--slurm --slurm.nodes 0", "slurm.nodes must be an integer in [1, 100000], got 0"),
        ("--slurm --slurm.time soon", "slurm.time must be minutes"),
        ("--slurm --slurm.partition a;b", "slurm.partition must be a name"),
        ("--slurm --job-id a/b", "job-id must be letters"),
        ("--slurm --sbatch-arg=--time=5", "use --slurm.time"),
        ("--slurm --sbatch-arg=-N3", "use --slurm.nodes"),
        ("--slurm --sbatch-arg=--array=1-3", "the script needs its own"),
        ("--slurm --sbatch-arg=qos", "must be one option of sbatch"),
        ("--slurm --retries 3", "--retries: of a Ray cluster"),
        ("--slurm.nodes 2", "--slurm.nodes: add --slurm"),
        ("--dry-run", "--dry-run: add --slurm"),
        ("--slurm --working-dir nowhere", "working_dir: nowhere is not a folder"),
        ("--slurm --working-dir none", "working_dir: none is not a folder"),
    ],
)
def test_wrong_input_is_one_sentence(capsys, words, sentence):
    assert submit.main([*words.split(), "--", *POINT]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_wrong_flags_of_the_launch_are_refused_before_anything_is_submitted(capsys, tmp_path):
    assert submit.main(["--slurm", "--", "--wrokers", "3"]) == 2
    assert "did you mean --workers?" in capsys.readouterr().err
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/config.json").write_text("{}")
    assert submit.main(["--slurm", "--", *POINT, "--run-dir", "runs/x"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_slurm_that_is_not_there_refuses_or_hangs_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert submit.main(["--slurm", "--", *POINT]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err
    text = "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n"
    program(tmp_path / "bin", "sbatch", text)
    assert submit.main(["--slurm", "--slurm.partition", "x", "--", *POINT]) == 2
    error = capsys.readouterr().err
    assert "the job was refused (sbatch: error: invalid partition specified: x)" in error
    program(tmp_path / "bin", "sbatch", "#!/bin/sh\nexec /bin/sleep 30\n")
    monkeypatch.setattr(module, "SBATCH_WITHIN_S", 0.1)
    assert submit.main(["--slurm", "--", *POINT]) == 1
    assert "did not answer" in capsys.readouterr().err


def test_a_job_that_was_taken_is_told_by_its_id_and_its_script_is_kept(
    capsys, tmp_path, monkeypatch
):
    program(tmp_path / "bin", "sbatch", '#!/bin/sh\necho "$@" >asked\necho "17;cluster"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert submit.main(["--slurm", "--", *POINT]) == 0
    out, error = capsys.readouterr()
    assert out == "17\n"
    assert "runs/point-17.log" in error
    assert "scancel" in error
    (script,) = (tmp_path / "runs").glob("point-*.sbatch")
    asked = (tmp_path / "asked").read_text()
    assert asked.split() == ["--parsable", f"--chdir={tmp_path}", str(script)]
    assert f"PYTHON={sys.executable}" in script.read_text()


LAUNCHER = """#!/bin/bash
echo "$@" >>launched
trap 'echo USR1 >>heard; exit 75' USR1
trap 'echo HUP >>heard; exit 0' HUP
trap '' TERM
echo up >up
{end}
for i in $(seq 600); do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Starts the script of a job with a launcher that is played."""
    program(tmp_path / "bin", "scontrol", '#!/bin/sh\necho "$@" >>scontrol_said\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    running = []

    def start(end="", launcher=LAUNCHER, **facts):
        python = program(tmp_path / "bin", "python-here", launcher.replace("{end}", end))
        (tmp_path / "job.sh").write_text(
            sbatch_script(SlurmJob(python=str(python), **facts), POINT)
        )
        process = subprocess.Popen(
            # Slurm starts jobs that hear SIGHUP; tests may run below nohup
            ["env", "--default-signal=HUP", "bash", "job.sh"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for(path):
    wait_until(path.exists, 20.0)


def test_the_warning_reaches_the_launcher_and_its_answer_is_a_requeue(job, tmp_path):
    process = job()
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    assert (tmp_path / "heard").read_text() == "USR1\n"
    assert (tmp_path / "scontrol_said").read_text() == "requeue 17\n"
    launched = (tmp_path / "launched").read_text()
    assert "--run-dir runs/worldloom-17 --if-exists resume" in launched


def test_a_launcher_that_does_not_listen_yet_is_requeued_too(job, tmp_path):
    process = job(launcher="#!/bin/bash\necho up >up\nexec sleep 30\n")
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    assert (tmp_path / "scontrol_said").read_text() == "requeue 17\n"


def test_a_person_who_stops_the_job_gets_a_checkpoint_and_no_requeue(job, tmp_path):
    process = job()
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert (tmp_path / "heard").read_text() == "HUP\n"
    assert not (tmp_path / "scontrol_said").exists()


def test_a_signal_to_every_process_of_the_job_leaves_the_launcher_its_time(job, tmp_path):
    slow = "#!/bin/bash\ntrap 'sleep 2; echo whole >checkpoint; exit 0' TERM\necho up >up\n"
    process = job(launcher=slow + "trap 'echo HUP >>heard' HUP\nwhile :; do sleep 0.05; done\n")
    wait_for(tmp_path / "up")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == 0
    assert (tmp_path / "checkpoint").read_text() == "whole\n"
    assert not (tmp_path / "scontrol_said").exists()


@pytest.mark.parametrize("status", [0, 1, 2])
def test_what_ends_by_itself_ends_the_job_with_its_exit_status(job, tmp_path, status):
    assert job(end=f"exit {status}").wait(20) == status
    assert not (tmp_path / "scontrol_said").exists()


def test_a_job_that_was_requeued_too_often_ends_and_says_so(job, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    process = job(end="exit 75", max_requeues=3)
    assert process.wait(20) == 75
    assert "requeued 3 times already" in process.stderr.read()
    assert not (tmp_path / "scontrol_said").exists()


def test_a_job_that_cannot_be_requeued_says_how_to_go_on(job, tmp_path):
    program(tmp_path / "bin", "scontrol", "#!/bin/sh\nexit 1\n")
    process = job(end="exit 75")
    program(tmp_path / "bin", "scontrol", "#!/bin/sh\nexit 1\n")
    assert process.wait(20) == 75
    assert "could not be requeued; submit it again" in process.stderr.read()
