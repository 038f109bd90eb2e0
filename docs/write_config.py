"""Write docs/reference/config.md from the config classes: fields, defaults and the line of help
below each field.

python docs/write_config.py
"""

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

from worldloom import (
    MODEL_CATALOG,
    DreamerV3Config,
    MLPConfig,
    TDMPC2Config,
    WorldModelConfig,
    get_config,
)
from worldloom.training import TrainingConfig

TARGET = Path(__file__).parent / "reference" / "config.md"
CLASSES = (TrainingConfig, WorldModelConfig, DreamerV3Config, TDMPC2Config, MLPConfig)


def help_lines(kind):
    """Field -> the text below it; its own fields, then those it has from others."""
    base = WorldModelConfig if kind is not WorldModelConfig else None
    owners = [k for k in kind.__mro__ if dataclasses.is_dataclass(k) and k is not base]
    return {name: text for owner in owners for name, text in own_help_lines(owner).items()}


def own_help_lines(kind):
    """Field -> the text below it, of the fields that a class writes itself."""
    source = Path(inspect.getsourcefile(kind)).read_text()
    body = next(
        n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == kind.__name__
    ).body
    pairs = itertools.pairwise(body)
    return {
        node.target.id: " ".join(after.value.value.split())
        for node, after in pairs
        if isinstance(node, ast.AnnAssign)
    }


def default(field):
    """The default as a reader would type it."""
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    value = field.default
    return repr(str(value)) if isinstance(value, str) else repr(value)


def page():
    """The whole page."""
    lines = [
        "# Configuration",
        "",
        "Written by `docs/write_config.py` from the classes themselves.",
        "",
        "## Presets",
        "",
    ]
    lines += ["| Preset | Parameters | Default observation | What |", "|---|---|---|---|"]
    for name, entry in MODEL_CATALOG.items():
        lines.append(
            f"| `{name}` | {entry['params']:,} | {entry['default_obs']} | {entry['description']} |"
        )
    lines += [
        "",
        "Each type also has `ci`, the smallest, for tests. A field is changed where "
        "the model is created:",
        "",
    ]
    lines += ["```python", "from worldloom import get_config", ""]
    lines += ['config = get_config("dreamerv3:size12m", obs_shape=(4,), action_dim=2, kl_free=0.5)']
    lines += [f"assert config.deter_dim == {get_config('dreamerv3:size12m').deter_dim}", "```"]
    for kind in CLASSES:
        texts = help_lines(kind)
        base = WorldModelConfig if kind not in (TrainingConfig, WorldModelConfig) else None
        lines += ["", f"## {kind.__name__}", "", (kind.__doc__ or "").splitlines()[0], ""]
        if base is not None:
            lines += [f"Beside the fields of `{base.__name__}`:", ""]
        lines += ["| Field | Default | Meaning |", "|---|---|---|"]
        fields = {f.name: f for f in dataclasses.fields(kind)}
        lines += [
            f"| `{name}` | `{default(fields[name])}` | {text} |"
            for name, text in texts.items()
            if name in fields
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page())
