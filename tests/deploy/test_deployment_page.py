"""``docs/deployment.md`` and ``SECURITY.md`` name only files, flags and settings that exist."""

import re
from pathlib import Path

import pytest

from worldloom_dist.run.cli import flag_names
from worldloom_dist.submit import _parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deployment.md").read_text()
OF_OTHERS = {
    *("--build", "--no-config-cache", "--port-forward", "--generate", "--from-literal"),
    *("--qos", "--batch", "--signal", "--exclusive"),
}
"""Flags of docker, ray, kubectl and Slurm that the page uses."""


@pytest.mark.parametrize("page", ["docs/deployment.md", "SECURITY.md", "README.md"])
def test_every_file_that_a_page_names_exists(page):
    named = set(re.findall(r"(?:deploy|examples|tests)/[\w/.-]*\w/?", (ROOT / page).read_text()))
    assert named or page == "README.md"
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_flag_on_the_page_is_known():
    ours = {
        *flag_names(),
        *(option for action in _parser()._actions for option in action.option_strings),
    }
    used = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", PAGE))
    assert len(used) > 10
    assert used <= ours | OF_OTHERS


def test_every_setting_of_compose_is_on_the_page_with_its_default():
    compose = (ROOT / "docker-compose.yml").read_text()
    settings = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose))
    assert set(re.findall(r"^\| `(WORLDLOOM_\w+)` \| `([^`]*)`", PAGE, re.MULTILINE)) == set(
        settings.items()
    )
