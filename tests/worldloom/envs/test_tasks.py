"""Lists of tasks: what they are, how their rows are padded, and who plays which when."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, StateError
from worldloom.core.specs import TASK, EnvSpec
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import build_tasks, env_spec, make_env, probe_env, probed
from worldloom.envs.task_sets import TASK_SETS
from worldloom.envs.tasks import joined_spec, read_tasks, turns, with_tasks
from worldloom.envs.vector import EnvStep, VectorEnv, env_seed

THREE = "toy:point,toy:counting,gym:Pendulum-v1"
TOYS = "toy:point,toy:counting"


@pytest.fixture(scope="module")
def three() -> EnvConfig:
    return probed(EnvConfig(env=THREE))


def played(env: VectorEnv, steps: int) -> list[EnvStep]:
    """Rows under actions of a fixed sequence."""
    rng = np.random.default_rng(0)
    rows = [env.reset(3)]
    for _ in range(steps):
        size = env.spec.action["action"].shape
        rows.append(env.step({"action": rng.uniform(-1, 1, (env.num_envs, *size)).astype("f4")}))
    return rows


def test_a_list_has_the_arrays_of_the_largest_task(three: EnvConfig) -> None:
    spec, size = probe_env(three)
    assert size is None
    assert {key: array.shape for key, array in spec.columns().items() if "is" not in key} == {
        "obs": (4,),
        "obs/task": (),
        "action": (2,),
        "reward": (),
        "terminated": (),
        "truncated": (),
    }
    assert [task.name for task in spec.tasks] == ["point", "counting", "Pendulum-v1"]
    assert [task.obs_size for task in spec.tasks] == [4, 3, 3]
    assert spec.action_mask().tolist() == [[1, 1], [1, 1], [1, 0]]
    assert (spec.episode_limit, spec.may_terminate) == (None, True)
    assert [task.episode_limit for task in spec.tasks] == [40, None, 200]
    assert spec.task_column == "obs/task"
    again = EnvSpec.from_dict(spec.to_dict())
    assert again == spec
    assert env_spec(EnvConfig(env="toy:point")).tasks == ()


def test_rows_are_padded_and_name_their_task(three: EnvConfig) -> None:
    env = make_env(three, num_envs=3, seed=0)
    try:
        rows = played(env, 60)
        for row in rows:
            assert row.obs[TASK].tolist() == [0, 1, 2]
            assert row.obs["obs"].dtype == np.float32
            assert not row.obs["obs"][1:, 3].any()
        assert rows[0].is_first.all()
        assert np.abs([row.obs["obs"][:, :3] for row in rows]).sum((0, 2)).all()
    finally:
        env.close()


def test_each_task_gets_its_own_components_of_the_action(three: EnvConfig) -> None:
    both = make_env(three, num_envs=3, seed=0)
    alone = make_env(EnvConfig(env="gym:Pendulum-v1"), num_envs=1, seed=0)
    try:
        both.reset(1)
        action = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)
        row = both.step({"action": action})
        assert row.obs["obs"][1].tolist() == pytest.approx([0, 1, 0.3, 0])
        other = both.step({"action": action * np.array([1, -1], np.float32)})
        assert other.obs["obs"][1, 2] == pytest.approx(0.3)
        twin = make_env(three, num_envs=3, seed=0)
        twin.reset(1)
        changed = action.copy()
        changed[2, 1] = -1
        np.testing.assert_array_equal(twin.step({"action": changed}).obs["obs"], row.obs["obs"])
        twin.close()
    finally:
        both.close()
        alone.close()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_every_task_is_played_equally_often(count: int) -> None:
    config = probed(EnvConfig(env="toy:point,toy:counting,toy:mirror"))
    cycles = turns(3, envs=range(count), all_envs=count)
    played_tasks: Counter[int] = Counter()
    for cycle in cycles:
        env = build_tasks(config)
        env.take_turns(cycle)
        tasks = [int(env.reset(None if episode else 5)[TASK]) for episode in range(12)]
        env.close()
        played_tasks.update(tasks)
        if count % 3 == 0:
            assert len(set(tasks)) == 1
    assert set(played_tasks.values()) == {4 * count}


def test_one_env_that_is_seeded_again_and_again_plays_every_task() -> None:
    (cycle,) = turns(30, envs=[0], all_envs=1)
    config = probed(EnvConfig(env=TOYS))
    entries = list(config.tasks.values())
    tasks = {f"t{i}": {**entries[i % 2], "name": f"t{i}"} for i in range(30)}
    env = build_tasks(dataclasses.replace(config, tasks=tasks))
    env.take_turns(cycle)
    seeds = np.random.default_rng(0).integers(2**31, size=40).tolist()
    seen = {int(env.reset(seed if not k else None)[TASK]) for seed in seeds for k in range(5)}
    env.close()
    assert seen == set(range(30))


def test_processes_give_the_rows_of_this_process() -> None:
    config = probed(EnvConfig(env=TOYS))
    near = make_env(config, num_envs=2, seed=3)
    far = make_env(config, num_envs=2, seed=3, processes=True)
    try:
        assert far.spec == near.spec
        for mine, theirs in zip(played(near, 90), played(far, 90), strict=True):
            for key, value in mine.obs.items():
                np.testing.assert_array_equal(theirs.obs[key], value)
            np.testing.assert_array_equal(theirs.reward, mine.reward)
            np.testing.assert_array_equal(theirs.is_first, mine.is_first)
    finally:
        near.close()
        far.close()


@pytest.mark.parametrize(
    ("fault", "processes", "said"),
    [
        ("raises", False, r"task 'bad': RuntimeError: broken on purpose \(.*faulty_envs.py:"),
        ("raises", True, r"task 'bad': RuntimeError: broken on purpose \(.*faulty_envs.py:"),
        ("gives_nan", False, "task 'bad': .*nan"),
        ("gives_nan", True, "task 'bad': .*nan"),
        ("exits", True, "task 'bad': "),
    ],
)
def test_a_failure_names_the_task(
    fault: str, processes: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    entries = {"good": "toy:point", "bad": f"tests.worldloom.envs.faulty_envs:{fault}"}
    tasks = {name: {"name": name, "env": env, "settings": {}} for name, env in entries.items()}
    (tmp_path / "happened").touch()  # not while it is looked at
    config = probed(EnvConfig(env="mt:a.toml", tasks=tasks))
    env = make_env(config, num_envs=2, seed=0, processes=processes)
    (tmp_path / "happened").unlink()
    try:
        played(env, 5)
        (fault_seen,) = env.drain_faults()
    finally:
        env.close()
    assert fault_seen.env == 1
    assert re.search(said, fault_seen.detail)


@pytest.mark.parametrize(
    ("fault", "processes", "kind"),
    [
        ("always_raises_in_reset", False, "raised"),
        ("cannot_be_built_when_ill", False, "raised"),
        ("always_raises_in_reset", True, "raised"),
        ("cannot_be_built_when_ill", True, "raised"),
        ("always_exits_in_step", True, "died"),
        ("always_hangs_in_reset", True, "hung"),
    ],
)
def test_a_task_that_always_fails_is_left_out_and_its_env_goes_on_with_the_others(
    fault: str, processes: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    bad = f"tests.worldloom.envs.faulty_envs:{fault}"
    entries = {"point": "toy:point", "bad": bad, "counting": "toy:counting"}
    tasks = {
        name: {"name": name, "env": env, "settings": {"time_limit": 3}}
        for name, env in entries.items()
    }
    config = probed(EnvConfig(env="mt:a.toml", tasks=tasks))
    limits = EnvLimits(max_failures=2, backoff_s=0.001, reset_timeout_s=2.0)
    env = make_env(config, num_envs=1, seed=21, processes=processes, limits=limits)
    (tmp_path / "ill").touch()
    try:
        env.reset()
        faults = []
        action = {"action": np.zeros((1, 2), np.float32)}
        while not any(fault.lost_task for fault in faults):
            env.step(action)
            faults += env.drain_faults()
        assert {(fault.kind, fault.is_quarantined) for fault in faults} == {(kind, False)}
        assert [fault.lost_task for fault in faults] == ["", "bad"]
        assert all("task 'bad'" in fault.detail for fault in faults)
        seen = Counter(int(env.step(action).obs[TASK][0]) for _ in range(40))
        assert not env.drain_faults()
    finally:
        env.close()
    assert set(seen) == {0, 2}


def test_an_env_whose_last_task_fails_is_in_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    bad = "tests.worldloom.envs.faulty_envs:always_raises_in_reset"
    tasks = {name: {"name": name, "env": bad, "settings": {}} for name in ("one", "two")}
    config = probed(EnvConfig(env="mt:a.toml", tasks=tasks))
    env = make_env(config, num_envs=1, seed=0, limits=EnvLimits(max_failures=3, backoff_s=0.001))
    (tmp_path / "ill").touch()
    with pytest.raises(EnvFailureError, match="no env is left of 1"):
        env.reset()
    *_, last = faults = env.drain_faults()
    assert sum(bool(fault.lost_task) for fault in faults) == 1
    assert last.is_quarantined
    env.close()


def test_a_saved_env_goes_on_in_the_middle_of_its_second_turn() -> None:
    config = probed(EnvConfig(env=TOYS))
    first = make_env(config, num_envs=1, seed=3)
    second = make_env(config, num_envs=1, seed=99)
    try:
        rows = played(first, 50)
        assert len({int(row.obs[TASK][0]) for row in rows}) == 2
        state = first.state()
        assert state is not None
        second.set_state(state)
        for number in range(100):
            action = {"action": np.full((1, 2), np.sin(number), np.float32)}
            mine, theirs = first.step(action), second.step(action)
            for key, value in mine.obs.items():
                np.testing.assert_array_equal(theirs.obs[key], value)
            assert theirs.reward == mine.reward
            assert theirs.is_first == mine.is_first
    finally:
        first.close()
        second.close()


def test_a_state_of_another_task_is_refused() -> None:
    config = probed(EnvConfig(env=TOYS))
    env = build_tasks(config)
    env.take_turns([0])
    env.reset(1)
    state = env.get_state()
    assert state is not None
    env.take_turns([1])
    with pytest.raises(StateError, match="plays counting now, and played 'point'"):
        env.set_state(state)
    env.close()


def test_an_env_that_has_become_another_is_refused(three: EnvConfig) -> None:
    tasks = dict(three.tasks)
    tasks["counting"] = {**tasks["counting"], "obs": [["obs", 2]]}
    with pytest.raises(ConfigurationError, match=r"task 'counting' .* had 2 numbers in obs 'obs'"):
        make_env(dataclasses.replace(three, tasks=tasks), num_envs=3, seed=0)


def test_parts_have_the_settings_of_their_task_and_of_the_whole() -> None:
    config = probed(EnvConfig(env="toy:point,gym:Pendulum-v1", time_limit=30))
    assert [task.episode_limit for task in joined_spec(config).tasks] == [30, 30]
    assert [part.time_limit for part in config.parts()] == [30, 30]
    assert EnvConfig.from_settings(config.env, config.settings()) == config
    assert "tasks" not in EnvConfig(env="toy:point").settings()
    hash(config)


def test_the_walker_lies_in_the_row_as_dm_control_gives_it() -> None:
    suite = pytest.importorskip("dm_control.suite")
    config = probed(EnvConfig(env="dmc:walker-walk,dmc:cup-catch"))
    spec = joined_spec(config)
    assert spec.tasks[0].obs == (("orientations", 14), ("height", 1), ("velocity", 9))
    assert spec.tasks[0].score == (0.0, 1000.0)
    assert spec.tasks[0].score_of(512.3) == pytest.approx(51.23)
    env = make_env(config, num_envs=2, seed=0)
    raw = suite.load("walker", "walk")
    raw.task.random.seed(env_seed(env_seed(1, 0), 0) % 2**32)
    try:
        row = env.reset(1).obs["obs"][0]
        values = raw.reset().observation.values()
        np.testing.assert_allclose(row, np.concatenate([np.ravel(v) for v in values]), rtol=1e-6)
    finally:
        env.close()
    assert env_spec(EnvConfig(env="dmc:walker-walk")).order == (
        "orientations",
        "height",
        "velocity",
    )


def test_different_action_repeats_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text(
        '[a]\nenv = "toy:point"\naction_repeat = 2\n[b]\nenv = "toy:counting"\n', encoding="utf-8"
    )
    with pytest.raises(ConfigurationError, match=r"action_repeat must be the same .* 2 for 'a'"):
        probe_env(EnvConfig(env=f"mt:{file}"))


def test_a_file_names_settings_and_scores(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text(
        '[near]\nenv = "toy:point"\ntime_limit = 20\nscore = [8, 32]\n'
        '[count]\nenv = "toy:counting"\n',
        encoding="utf-8",
    )
    config = probed(with_tasks(EnvConfig(env=f"mt:{file}")))
    file.unlink()
    near, count = joined_spec(config).tasks
    assert (near.name, near.episode_limit, near.score_of(20)) == ("near", 20, 50)
    assert (count.name, count.episode_limit, count.score_of(20)) == ("count", None, None)


@pytest.mark.parametrize("name", TASK_SETS)
def test_sets_name_each_task_once(name: str) -> None:
    assert len(read_tasks(f"mt:{name}")) == len(TASK_SETS[name])


def test_a_list_of_one_is_that_env(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text('[a]\nenv = "toy:point"\ntime_limit = 20\n', encoding="utf-8")
    assert with_tasks(EnvConfig(env=f"mt:{file}")) == EnvConfig(env="toy:point", time_limit=20)


BAD_LISTS = {
    "toy:point,": "entry 2 of the list .* is empty",
    "toy:point,toy:point": "two tasks of the list are called 'point'",
    "toy:point,none": "cannot be one of several tasks",
    "toy:point,rllib:x": "RLlib's envs",
    "toy:point,mt:dmc10": "a list cannot be a task",
    "toy:point,a:b:c": "no suite 'a'",
    "mt:dmc11": "no such set of tasks; did you mean dmc1",
    "mt:nowhere.toml": "cannot be read",
    "mt:": "a name must follow the colon, for example mt:dmc10",
}


def test_a_file_of_one_task_is_that_env_wherever_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('[near]\nenv = "toy:point"\ntime_limit = 7\n', encoding="utf-8")
    config = EnvConfig(env=f"mt:{file}")
    spec = env_spec(config)
    assert spec == env_spec(EnvConfig(env="toy:point", time_limit=7))
    assert probe_env(probed(config)) == (spec, None)
    env = make_env(config, num_envs=2, seed=0)
    assert (env.spec, env.num_envs) == (spec, 2)
    env.close()


@pytest.mark.parametrize("env", BAD_LISTS)
def test_a_bad_list_gives_one_sentence(env: str) -> None:
    with pytest.raises(ConfigurationError, match=BAD_LISTS[env]):
        read_tasks(env)


BAD_FILES = {
    "": "names no task",
    "[a": "is no TOML file",
    'a = "toy:point"': r"\[a\] is 'toy:point'",
    "[a]\n": "env must be a text",
    "[a]\nenv = 3\n": "env must be a text",
    '[a]\nenv = "toy:point"\ntimelimit = 3\n': "no setting 'timelimit'.*time_limit",
    '[a]\nenv = "toy:point"\ntime_limit = "x"\n': r"\[a\]: env.time_limit must be None or an",
    '[a]\nenv = "toy:point"\ntasks = {}\n': "there is no setting 'tasks'",
    '[a]\nenv = "toy:point"\nscore = [3, 1]\n': "score must rise",
    '[a]\nenv = "toy:point"\nscore = [1]\n': "score must be the returns",
    '["a/b"]\nenv = "toy:point"\n': "a task's name has letters",
    '[a]\nenv = "toy:point"\n[b]\nenv = " toy:point"\n': "'a' and 'b' are the same task",
    '[a]\nenv = "none"\n': "cannot be one of several tasks",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_file_gives_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=BAD_FILES[text]):
        read_tasks(f"mt:{file}")


def test_what_is_no_list_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "large.toml").write_bytes(b"#" * 1_000_001)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000, encoding="utf-8")
    said = {"pipe": "is no file", "folder": "is no file", "large": "has 1000001 bytes"}
    said |= {"bytes": "is no TOML file", "deep": "is no TOML file"}
    for name, sentence in said.items():
        with pytest.raises(ConfigurationError, match=sentence):
            read_tasks(f"mt:{tmp_path / name}.toml")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("toy:point,gym:CartPole-v1", "'CartPole-v1' .* has the discrete action"),
        ("toy:point,toy:pixel", "'pixel' .* observes 'obs' of shape"),
        ("toy:point,toy:pont", "no such toy"),
    ],
)
def test_a_task_that_cannot_be_padded_is_refused(env: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        probe_env(EnvConfig(env=env))


def test_tasks_of_one_env_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"env\.tasks is for a list of envs"):
        EnvConfig(env="toy:point", tasks={"a": {}})
    for entry in (3, {}, {"env": "toy:point"}, {"env": 3, "settings": {}}):
        with pytest.raises(ConfigurationError, match=r"env\.tasks: 'a' is no task"):
            EnvConfig(env="mt:dmc10", tasks={"a": entry})
    damaged = {"a": {"env": "toy:point", "settings": {"speed": 3}}}
    with pytest.raises(ConfigurationError, match=r"env\.tasks of 'mt:dmc10' cannot be read"):
        EnvConfig(env="mt:dmc10", tasks=damaged).parts()
    damaged["a"] = {"env": "toy:point", "settings": {}, "obs": [["obs"]], "action": []}
    with pytest.raises(ConfigurationError, match=r"env\.tasks of 'mt:dmc10' cannot be read"):
        joined_spec(EnvConfig(env="mt:dmc10", tasks=damaged))


@pytest.mark.parametrize("setting", [{"pixels": True}, {"camera": 1}, {"noops": 3}])
def test_settings_of_pictures_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="leave it out"):
        EnvConfig(env="mt:dmc10", **setting)
