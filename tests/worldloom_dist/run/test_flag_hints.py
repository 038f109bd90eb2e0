"""Settings are found: by help, by other names, and by what a wrong name means."""

import pytest

from worldloom.algorithms.registry import make_agent_config
from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.launch import main
from worldloom_dist.run.cli import UsageError, parse


@pytest.mark.parametrize("agent", ["dreamerv3:ci", "r2dreamer:ci", "tdmpc2:1m"])
def test_help_with_an_agent_lists_its_settings_with_defaults(agent, capsys):
    for words in (["--agent", agent, "--help"], ["--help", f"--agent={agent}"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        own = capsys.readouterr().out.partition(f"settings of {agent}")[2]
        config = make_agent_config(agent)
        for name in config.__dataclass_fields__.keys() - {"name"}:
            assert f"--agent.{name.replace('_', '-')} " in own.replace("\n", " \n")
            assert f"(default: {getattr(config, name)})" in " ".join(own.split())
    assert main(["--agent", "dreamerv3:cii", "--help"]) == 2
    assert "did you mean dreamerv3:ci?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("agent", "flag", "field"),
    [
        ("dreamerv3:ci", "--agent.learning-rate", "lr"),
        ("dreamerv3:ci", "--agent.lr", "lr"),
        ("tdmpc2:ci", "--agent.lr", "learning_rate"),
        ("tdmpc2:ci", "--agent.learning_rate", "learning_rate"),
    ],
)
def test_a_learning_rate_has_two_names(agent, flag, field):
    config = parse(["--agent", agent, flag, "0.002"])
    assert config.agent_overrides == {field: 0.002}
    assert getattr(make_agent_config(agent, {flag[8:].replace("-", "_"): 0.5}), field) == 0.5


def test_two_values_of_one_setting_are_refused():
    with pytest.raises(ConfigurationError, match=r"0\.1 and 0\.2 are given for one setting"):
        make_agent_config("tdmpc2:ci", {"lr": 0.1, "learning_rate": 0.2})


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--lr 1", "--agent.learning-rate"),
        ("--agent dreamerv3:ci --lr 1", "--agent.lr"),
        ("--gamma 1", "--agent.discount"),
        ("--agent dreamerv3:ci --agent.gamma 1", "--agent.horizon"),
        ("--agent dreamerv3:ci --agent.tau 1", "--agent.slow-rate"),
        ("--total-timesteps 1", "--env-steps"),
        ("--buffer-size 1", "--replay.capacity-steps"),
        ("--learning-starts 1", "--agent.prefill-agent-steps"),
        ("--num-workers 1", "--workers"),
        ("--env-id x", "--env"),
        ("--device cuda", "--learner.device"),
        ("--logdir x", "--run-dir"),
        ("--batch-size 1", "--agent.batch-size"),
        ("--wrokers 1", "--workers"),
        ("--replay.capcity-steps 1", "--replay.capacity-steps"),
    ],
)
def test_a_wrong_name_is_answered_by_what_it_means(words, meant):
    with pytest.raises(UsageError) as caught:
        parse(words.split())
    said = str(caught.value)
    assert said.endswith("?"), said
    assert meant in said.partition("did you mean ")[2][:-1].split(" or ")
