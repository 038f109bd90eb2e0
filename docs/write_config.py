"""Write the reference pages from the config classes: fields, defaults and the line of help below
each field. ``reference/config.md`` has the library's, ``reference/flags.md`` those of a run,
``reference/agents.md`` those of the agents.

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
from worldloom.algorithms.registry import agent_names, make_agent_config
from worldloom.envs.config import EnvConfig
from worldloom.training import TrainingConfig
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.presets import PRESETS

REFERENCE = Path(__file__).parent / "reference"
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


def flag(name):
    """A field as it is typed."""
    return "--" + name.replace("_", "-")


def flags_page():
    """The flags of ``python -m worldloom_dist.launch``."""
    lines = [
        "# Flags of a run",
        "",
        "Written by `docs/write_config.py` from `worldloom_dist/run/config.py`. Every flag of",
        "`python -m worldloom_dist.launch`, with its default; `--help` prints the same. Defaults",
        "that a preset sets stand in the second table. An agent's own settings, `--agent.FIELD`,",
        "are in [Agents](agents.md). `--seeds 1-5` makes a run for each seed, `--parallel 2` two",
        "at a time: [Sweeps and seeds](../guide/sweeps.md).",
        "",
    ]
    texts = help_lines(RunConfig)
    fields = {f.name: f for f in dataclasses.fields(RunConfig)}
    sections = {"env": EnvConfig}
    plain = {}
    for name, text in texts.items():
        factory = fields[name].default_factory
        if inspect.isclass(factory) and dataclasses.is_dataclass(factory):
            sections.setdefault(name, factory)
        elif name not in ("agent_overrides", "env"):
            plain[name] = text
    lines += [*table(RunConfig, plain), ""]
    for section, kind in sections.items():
        lines += [f"## {flag(section)}", "", (kind.__doc__ or "").splitlines()[0], ""]
        lines += [*table(kind, help_lines(kind), "" if section == "env" else section), ""]
    lines += ["## Presets", "", "| Preset | What | Sets |", "|---|---|---|"]
    for name, preset in PRESETS.items():
        lines.append(f"| `{name}` | {preset.summary} | {', '.join(preset_flags(preset()))} |")
    return "\n".join(lines) + "\n"


def table(kind, texts, section=""):
    """Rows of flags. Fields of ``--env`` but the spec itself are ``--env.FIELD``."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    lines = ["| Flag | Default | Meaning |", "|---|---|---|"]
    for name, text in texts.items():
        if kind is EnvConfig and name == "tasks":  # filled, not typed
            continue
        typed = flag(f"{section}.{name}" if section else name)
        if kind is EnvConfig and name != "env":
            typed = flag(f"env.{name}")
        shown = text.replace("|", "\\|")
        lines.append(f"| `{typed}` | `{default(fields[name])}` | {shown} |")
    return lines


def preset_flags(config):
    """What a preset sets otherwise than the defaults, as it would be typed."""
    changed = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain = getattr(RunConfig(), field.name)
        if value == plain or field.name == "preset":
            continue
        if field.name == "agent_overrides":
            changed += [f"`{flag('agent.' + name)} {given}`" for name, given in value.items()]
        elif dataclasses.is_dataclass(value):
            for part in dataclasses.fields(value):
                given = getattr(value, part.name)
                typed = "env" if part.name == "env" else f"{field.name}.{part.name}"
                if given != getattr(plain, part.name):
                    changed.append(f"`{flag(typed)} {given}`")
        else:
            changed.append(f"`{flag(field.name)} {value}`")
    return changed


def agents_page():
    """The fields of every agent, and what its presets set."""
    lines = [
        "# Agents",
        "",
        "Written by `docs/write_config.py` from the agents' own classes. Choose one by",
        "`--agent ALGORITHM:PRESET`, set a field by `--agent.FIELD VALUE`.",
        "",
    ]
    names = agent_names(with_guests=False)
    for algorithm in sorted({name.partition(":")[0] for name in names}):
        presets = [name for name in names if name.startswith(algorithm + ":")]
        configs = {name: make_agent_config(name) for name in presets}
        kind = type(next(iter(configs.values())))
        plain = kind()
        lines += [f"## {algorithm}", "", "| Preset | Sets |", "|---|---|"]
        for name, config in configs.items():
            sets = [
                f"`{field.name} {getattr(config, field.name)}`"
                for field in dataclasses.fields(kind)
                if getattr(config, field.name) != getattr(plain, field.name)
                and field.name != "name"
            ]
            lines.append(f"| `{name}` | {', '.join(sets) or 'the defaults below'} |")
        lines += ["", "| Field | Default | Meaning |", "|---|---|---|"]
        fields = {f.name: f for f in dataclasses.fields(kind)}
        lines += [
            f"| `{name}` | `{default(fields[name])}` | {text} |"
            for name, text in help_lines(kind).items()
            if name in fields and name != "name"
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"config.md": page, "flags.md": flags_page, "agents.md": agents_page}

if __name__ == "__main__":
    for file, write in PAGES.items():
        (REFERENCE / file).write_text(write())
