"""The line that installs an optional package names a distribution that is there."""

from importlib import metadata

import pytest

from worldloom.core.extras import install_line


@pytest.mark.parametrize(
    ("installed", "line"),
    [
        ({"worldloom"}, "pip install 'worldloom[viz]'"),
        ({"worldloom-dist"}, "pip install 'worldloom-dist[viz]'"),
        ({"worldloom", "worldloom-dist"}, "pip install 'worldloom-dist[viz]'"),
        (set(), "pip install 'worldloom-dist[viz]'"),
    ],
)
def test_the_distribution_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], line: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert install_line("viz") == line


def test_several_extras_are_one_line() -> None:
    assert install_line("atari", "dmc") == "pip install 'worldloom-dist[atari,dmc]'"
