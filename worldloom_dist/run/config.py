"""Everything a run can be told, as frozen dataclasses: a field is the only home of a default, and
the line below it its help.

Torch-free and ray-free, so that ``--help`` answers at once. ``RunConfig.problems`` checks across
sections and reports all problems together; nothing is written or started before it returns an empty
list.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldloom.algorithms.registry import AgentConfig, make_agent_config
from worldloom.core.exceptions import ConfigurationError, WorldLoomError
from worldloom.core.fields import NOT_NEGATIVE, POSITIVE, Bounds, normalize
from worldloom.core.files import expanded
from worldloom.data.offline_share import parse_share
from worldloom.data.selector_spec import parse_selector
from worldloom.envs.config import EnvConfig

__all__ = [
    "NO_PRESET",
    "ActorsConfig",
    "GatewayConfig",
    "LearnerConfig",
    "PlacementConfig",
    "ReplayConfig",
    "RunConfig",
]


MANY = Bounds(1, 100_000)
"""Of what takes a process, an env or a thread each."""
SECONDS = Bounds(above=0, most=10**9)
WAIT_S = Bounds(0, 10**9)
"""Times; the system's clocks and locks take no longer ones."""
BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(("envs_per_worker", "inference_servers", "learners"), MANY),
    "workers": Bounds(0, 100_000),
    "gateway_port": Bounds(1, 65535),
    "gateways": Bounds(1, 100),
    **dict.fromkeys(("env_steps", "train_steps", "eval_max_steps"), Bounds(1)),
    **dict.fromkeys(("eval_every", "seed", "offline_steps"), NOT_NEGATIVE),
    **dict.fromkeys(("eval_episodes", "eval_videos"), Bounds(0, 100_000)),
    "train_ratio": POSITIVE,
    "eval_timeout_s": SECONDS,
    "metrics_port": Bounds(0, 65535),
}
BOUNDS_OF: Mapping[str, Mapping[str, Bounds]] = {
    "actors": {
        **dict.fromkeys(("chunk_rows", "max_env_failures"), Bounds(1)),
        **dict.fromkeys(("start_wave", "groups", "max_batch"), MANY),
        **dict.fromkeys(("min_live", "max_restarts"), NOT_NEGATIVE),
        **dict.fromkeys(
            ("step_timeout_s", "reset_timeout_s", "act_timeout_s", "max_chunk_age_s"), SECONDS
        ),
        **dict.fromkeys(("restart_window_s", "env_failure_window_s"), SECONDS),
        **dict.fromkeys(("pull_interval_s", "max_wait_ms"), WAIT_S),
        "env_memory_gb": Bounds(above=0, most=10**9),
    },
    "replay": {
        **dict.fromkeys(("capacity_steps", "stride", "band_steps"), Bounds(1)),
        **dict.fromkeys(("capacity_gb", "ram_gb"), Bounds(above=0, most=10**9)),
        "shards": MANY,
    },
    "learner": {
        **dict.fromkeys(("threads", "prefetch"), MANY),
        **dict.fromkeys(("keep_checkpoints", "checkpoint_every_steps"), Bounds(1)),
        "publish_every_updates": Bounds(1),
        **dict.fromkeys(("publish_every_s", "checkpoint_every_s"), SECONDS),
        "report_every_steps": NOT_NEGATIVE,
        "held_out_every": Bounds(1),
    },
    "placement": {
        **dict.fromkeys(("worker_cpus", "learner_gpus", "inference_gpus"), Bounds(0, 10**6)),
        "wait_s": WAIT_S,
    },
    "gateway": {"lease_s": Bounds(1, 86_400)},
}
"""Which numbers the fields of every section may hold."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
PATHS = ("run_dir", "resume", "metrics_auth_file")
NO_PRESET = "default"
"""Name in place of a preset's where settings follow from env and agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorsConfig:
    """Env workers."""

    chunk_rows: int = 64
    """Rows per chunk that a worker sends to replay. With --runtime local as many decisions of an
    env come before the updates that they make due; 1 updates behind each."""
    max_chunk_age_s: float = 1.0
    """Send an open chunk after this many seconds even if it is not full."""
    pull_interval_s: float = 1.0
    """Look for newer weights at most this often, between two steps."""
    min_live: int = 1
    """Fail the run when fewer workers than this are alive and none is being restarted."""
    max_restarts: int = 20
    """Restarts of a worker in restart_window_s until it is given up (3 if envs fail at once)."""
    restart_window_s: float = 600.0
    """Window in which restarts are counted."""
    step_timeout_s: float = 60.0
    """A worker whose env step takes longer is killed and replaced."""
    reset_timeout_s: float = 120.0
    """A worker whose env reset takes longer is killed and replaced."""
    max_env_failures: int = 5
    """Failures of one env within env_failure_window_s after which it is not rebuilt."""
    env_failure_window_s: float = 600.0
    """Window in which failures of an env are counted."""
    env_memory_gb: float | None = None
    """GB (1e9 bytes) an env may hold (default: half of all over the envs, if memory is short)."""
    supervise: bool = True
    """Run each env of a worker with several in a process of its own: a hang costs one env."""
    start_wave: int = 8
    """Workers started at the same time."""
    elastic: bool = False
    """Let the number of workers follow the cluster's CPUs, in proportion to --workers."""
    groups: int = 2
    """Central inference: groups of a worker's envs; one steps while another waits for actions."""
    max_batch: int = 64
    """Central inference: rows in one batch."""
    max_wait_ms: float = 2.0
    """Central inference: how long a batch waits for more rows."""
    cuda_graphs: bool = True
    """Central inference on a GPU: replay decisions as CUDA graphs, one per batch size."""
    act_timeout_s: float = 60.0
    """An inference server that takes longer for one batch is killed and replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Sharded replay."""

    shards: int = 1
    """Replay shards; each is one process."""
    capacity_steps: int = 1_000_000
    """Rows kept over all shards; the oldest make room."""
    capacity_gb: float | None = None
    """Besides, GB (1e9 bytes) that the stored rows may take, compressed, over all shards."""
    ram_gb: float | None = None
    """GB of memory for all shards (default: half of this machine's); the journal holds the rest."""
    selector: str = "agent"
    """Draws: agent, uniform, online, prioritised[:EXP], recency[:POW], source:NAME, 0.5*A+0.5*B."""
    stride: int = 1
    """Windows begin at every Nth row of a stream; the window's length: they never overlap."""
    durability: Literal["none", "journal", "fsync"] = "journal"
    """An acknowledged row is: none, in memory; journal, safe from kill -9; fsync, on disk."""
    held_out: str | None = None
    """Files (A,B) that are never trained on; a run measures its losses on them, too."""
    offline_share: str | None = None
    """Share of each batch from the rows of load: 0.5, or 1.0:0.1@20000 (to 20000 env steps)."""
    load: str | None = None
    """Episodes to store first, A,B: FILE.npz, FILE.parquet, minari:NAME, rllib:DIR, lerobot:DIR."""
    band_steps: int | None = None
    """Width of the train ratio's band in agent steps (default: what the run needs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """The learner."""

    device: str = "auto"
    """Where it trains: auto, cpu, cuda, cuda:1 ..."""
    threads: int | None = None
    """Torch threads of the learner (default: cores that others leave; 1 for a small local one)."""
    prefetch: int = 2
    """Sample requests kept ahead of the training step."""
    publish_every_s: float = 1.0
    """Publish weights this often, if there are new ones."""
    publish_every_updates: int = 20
    """Publish after this number of updates, too, where that is sooner: for a fast learner."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints on Ray."""
    checkpoint_every_steps: int = 20_000
    """Env steps between checkpoints with --runtime local, each of which may reset envs."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept, besides the best one."""
    report_every_steps: int = 20_000
    """Env steps between pictures of open-loop predictions in RUN/videos; 0 draws none."""
    held_out_every: int = 1_000
    """Updates between measurements on replay.held_out."""
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    """What weights become on their way to the workers."""
    compile: Literal["off", "auto", "graph", "inductor"] = "auto"
    """Updates: auto = a captured CUDA graph where that works, off, inductor (TD-MPC2)."""
    tf32: bool = True
    """On CUDA, multiply float32 matrices in TF32 (relative error 1e-3, several times faster)."""
    deterministic: bool = False
    """Only operators that give the same bits every time (slower; on CUDA without TF32)."""
    checkpoints: str | None = None
    """Path or URL (s3://, gs://, ...) of the checkpoints (default: in the run folder)."""
    standby: Literal["auto", "on", "off"] = "auto"
    """On Ray, CPU only: a second learner goes on when the first dies; auto: memory allowing."""

    @property
    def whole_checkpoints(self) -> str | None:
        """``checkpoints`` as a process that runs in another folder names them."""
        if self.checkpoints is None or "://" in self.checkpoints:
            return self.checkpoints
        return str(expanded(self.checkpoints, "learner.checkpoints").absolute())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """What roles ask for on a cluster that is joined with --address; a cluster that the launcher
    starts is used without asking.
    """

    worker_cpus: float = 1.0
    """CPUs that one env worker asks for."""
    learner_gpus: float | None = None
    """GPUs of a learner (default: 1, or what inference servers leave; 0 without a GPU)."""
    inference_gpus: float | None = None
    """GPU share of an inference server (default: 0.25 when the learner has a GPU)."""
    wait_s: float = 0.0
    """Seconds that a role waits for a cluster to grow; with 0 one too small is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Where programs outside of the run are let in."""

    host: str = "127.0.0.1"
    """Address that gateways listen on; another than the loopback needs TLS and a token."""
    tls_cert: str | None = None
    """File with the certificate chain of the gateways, PEM."""
    tls_key: str | None = None
    """File with its private key, PEM."""
    token_file: str | None = None
    """File with the bearer token that clients show, readable by its owner only."""
    client_ca: str | None = None
    """File with who signs clients' certificates, PEM: every client needs one then."""
    lease_s: float = 10.0
    """A client that is silent for so long loses its session; its episodes count as truncated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run: what to train, on what, with how much, and where it is written."""

    preset: str = "quick"
    """A whole run by name, or several (a+b); flags override it. With --env or --agent: default."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment: --env SPEC, and its settings as --env.FIELD VALUE."""
    agent: str = "tdmpc2:ci"
    """algorithm:preset; settings of the algorithm are --agent.FIELD VALUE."""
    workers: int = 2
    """Env workers; 0 with a gateway, whose clients bring the envs."""
    envs_per_worker: int = 1
    """Envs in each worker."""
    inference: Literal["local", "central", "auto"] = "auto"
    """Where the policy runs: in each worker, in inference servers, or chosen by cost."""
    inference_servers: int = 1
    """Inference servers when the policy runs centrally."""
    train_ratio: float | None = None
    """Trained positions per agent step (default: the agent's own)."""
    learners: int = 1
    """Data-parallel learner ranks."""
    env_steps: int = 100_000
    """Stop at this many env steps in all, those before a resume included."""
    offline_steps: int = 0
    """Updates on the rows of --replay.load before the first env step; none is owed for them."""
    train_steps: int = 10_000
    """With --env none: stop when the run has made this many updates in all."""
    eval_every: int = 10_000
    """Env steps between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes per evaluation (of each task), on own envs and seeds; 0 turns evaluation off."""
    eval_videos: int = 0
    """Episodes of each evaluation (of each task) of which a video is written to videos/."""
    eval_max_steps: int | None = None
    """Decisions after which an evaluation episode is cut (default: 10000 or the env's limit)."""
    eval_model: bool = True
    """Hold the agent's model against the episodes of each evaluation; False saves the time."""
    eval_timeout_s: float = 1800.0
    """Seconds that one evaluation may take (per task) before it is given up."""
    seed: int = 1
    """Root of all randomness."""
    runtime: Literal["ray", "local"] = "ray"
    """ray = distributed; local = all roles in one process, in lock-step, deterministic."""
    barrier: bool = False
    """On Ray: the version that acts depends on the row count alone (slow, for comparisons)."""
    address: str | None = None
    """Address of an existing Ray cluster; without it a local one is started and stopped for you."""
    run_dir: Path | None = None
    """Run folder (default: runs/NAME-NNNN, a new one)."""
    init_from: str | None = None
    """Begin with a trained agent: a run, a checkpoint, a saved agent, hf://USER/NAME, or a file."""
    if_exists: Literal["error", "resume"] = "error"
    """What to do when the run folder holds a run."""
    resume: Path | None = None
    """Carry on the run in this folder; its settings are kept, other flags override them."""
    metrics_port: int | None = None
    """Prometheus endpoint (default: 9464 or the next free port; 0 = off)."""
    metrics_host: str = "127.0.0.1"
    """Address that the Prometheus endpoint listens on."""
    metrics_auth_file: Path | None = None
    """Token or USER:PASSWORD of the endpoint, in a file (or WORLDLOOM_METRICS_AUTH)."""
    gateway_port: int | None = None
    """Let programs outside act with the policy and feed replay: the port of the gRPC gateway."""
    gateways: int = 1
    """Gateways, on ports from --gateway-port on."""
    tensorboard: bool = False
    """Write TensorBoard events to RUN_DIR/tensorboard."""
    wandb: bool = False
    """Send the same numbers to Weights & Biases; WANDB_MODE=offline keeps them in RUN_DIR/wandb."""
    trackio: bool = False
    """Keep the same numbers in RUN_DIR/trackio, or where TRACKIO_SERVER_URL or _SPACE_ID lead."""
    mlflow: bool = False
    """Keep the same numbers in RUN_DIR/mlflow.db, or where MLFLOW_TRACKING_URI leads."""
    otel: bool = False
    """Export the hub's metrics over OTLP to OTEL_EXPORTER_OTLP_ENDPOINT (http/protobuf)."""
    sink: str | None = None
    """Further sinks: a name that a package brings, or package.module:name; several as a+b."""
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    """Env workers."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Sharded replay."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """The learner."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """What roles ask for on a cluster."""
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    """The gateways, with --gateway-port."""
    agent_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the agent's own config that were set (not a flag: filled from --agent.FIELD)."""

    def agent_config(self) -> AgentConfig:
        """The agent's config with the overrides applied."""
        return make_agent_config(self.agent, self.agent_overrides)

    @property
    def num_envs(self) -> int:
        """Envs that feed replay."""
        return 0 if self.env.is_none else self.workers * self.envs_per_worker

    @property
    def standby_obstacle(self) -> str:
        """Why this run can have no standby learner; empty where it can."""
        if self.runtime == "local":
            return "--runtime local has one process"
        if self.learners > 1:
            return f"{self.learners} learner ranks go on from their newest checkpoint together"
        if self.address is not None:
            return "on a cluster that was joined, a learner goes on from its newest checkpoint"
        if self.learner.device.startswith("cuda"):
            return "a second learner would take a part of the GPU"
        return ""

    def problems(self) -> list[str]:
        """One sentence per setting that cannot work; an empty list when the run may start. Starts
        and writes nothing.
        """
        found = self._range_problems()
        if found:
            return found  # what follows compares and computes
        try:
            self.agent_config()
        except WorldLoomError as error:
            found.append(str(error))
        if self.learners > 1:
            found += self._rank_problems()
        if 0 < self.workers < self.actors.min_live:
            found.append(
                f"actors.min_live must be <= workers ({self.workers}), got {self.actors.min_live}"
            )
        capacity = self.replay.capacity_steps // self.replay.shards
        if self.actors.chunk_rows > capacity:
            found.append(
                "actors.chunk_rows must be <= replay.capacity_steps / replay.shards "
                f"({capacity}), got {self.actors.chunk_rows}"
            )
        if self.env.is_none and not self.replay.load:
            found.append(
                "env is none, which trains offline: name the data with --replay.load "
                "FILE.npz, or name an env"
            )
        found += self._offline_problems()
        try:
            parse_selector(self.replay.selector)
        except ConfigurationError as error:
            found.append(str(error))
        if not DEVICE.fullmatch(self.learner.device):
            found.append(
                f"learner.device must be auto, cpu, cuda or cuda:N, got {self.learner.device!r}"
            )
        found += self._gateway_problems()
        found += self._task_problems()
        obstacle = "" if self.runtime == "local" else self.standby_obstacle
        if self.learner.standby == "on" and obstacle:
            found.append(f"learner.standby must be auto or off here, got 'on': {obstacle}")
        if self.runtime == "local" and self.address:
            found.append("address is for --runtime ray, and runtime is local: drop one of the two")
        if self.actors.elastic and self.runtime == "local":
            found.append(
                "actors.elastic is for --runtime ray, and runtime is local: drop one of the two"
            )
        if self.barrier and (self.workers > 1 or self.inference == "central"):
            found.append("barrier needs --workers 1 and a policy in the worker (--inference local)")
        return found

    def _offline_problems(self) -> list[str]:
        found = self._share_problems()
        if not self.offline_steps:
            return found
        if self.env.is_none:
            return [
                *found,
                f"offline_steps: env is none, so all updates are offline, got "
                f"{self.offline_steps}; say how many with --train-steps",
            ]
        if not self.replay.load:
            return [
                *found,
                f"offline_steps: {self.offline_steps} updates before the first env step need rows "
                "from files; name them with --replay.load FILE.npz, or leave the flag out",
            ]
        if self.gateway_port is not None:
            return [
                *found,
                "offline_steps: clients of a gateway act whenever they ask, so "
                f"{self.offline_steps} updates cannot come before; train with --env none first, "
                "and begin with that by --init-from",
            ]
        return found

    def _share_problems(self) -> list[str]:
        text = self.replay.offline_share
        if text is None:
            return []
        try:
            parse_share(text)
        except ConfigurationError as error:
            return [str(error)]
        if self.env.is_none or not self.replay.load:
            why = (
                "env is none, so every row is"
                if self.env.is_none
                else "without replay.load none is"
            )
            return [
                f"replay.offline_share: {text} of each batch is to begin at rows from files, and "
                f"{why} of files; leave the flag out, or name an env and --replay.load FILE.npz"
            ]
        return []

    def _task_problems(self) -> list[str]:
        if not self.env.tasks:
            return []
        single = {
            "gateway_port": self.gateway_port is not None,
            "replay.load": bool(self.replay.load),
            "replay.held_out": bool(self.replay.held_out),
        }
        return [
            f"{name} is for one task, and --env names {len(self.env.tasks)}; leave it out"
            for name, is_set in single.items()
            if is_set
        ]

    def _gateway_problems(self) -> list[str]:
        if self.gateway_port is None:
            return []
        found = []
        if self.env.is_none:
            found.append("gateway_port: env is none, so nothing acts; leave the flag out")
        if self.barrier:
            found.append("gateway_port: with --barrier time decides nothing; drop one of the two")
        if self.runtime == "local" and self.gateways > 1:
            found.append(
                f"gateways must be 1 with --runtime local, got {self.gateways}; use --runtime ray"
            )
        if self.gateway_port + self.gateways - 1 > 65535:
            found.append(
                f"gateway_port: {self.gateways} gateways from port {self.gateway_port} on go "
                "beyond 65535; name a lower port"
            )
        return found

    def _rank_problems(self) -> list[str]:
        found = []
        if self.runtime == "local":
            found.append(
                f"learners must be 1 with --runtime local, got {self.learners}; use --runtime ray"
            )
        if self.replay.held_out:
            found.append(
                f"learners must be 1 with --replay.held-out, got {self.learners}; drop one of the "
                "two"
            )
        if self.barrier:
            found.append(f"learners must be 1 with --barrier, got {self.learners}")
        if ":" in self.learner.device:
            found.append(
                f"learner.device must name no single GPU with {self.learners} "
                f"learners, got {self.learner.device!r}; use cuda"
            )
        return found

    def _range_problems(self) -> list[str]:
        """What is no plain value of its field's type, inside its bounds."""
        sections = ("actors", "replay", "learner", "placement", "gateway")
        no_workers = self.workers == 0 and self.gateway_port is None and not self.env.is_none
        return [
            *(
                [
                    "workers must be an integer in [1, 100000], got 0; it may be 0 with "
                    "--gateway-port, whose clients bring the envs"
                ]
                if no_workers
                else []
            ),
            *normalize(self, BOUNDS),
            *(
                text
                for name in sections
                for text in normalize(getattr(self, name), BOUNDS_OF[name], prefix=f"{name}.")
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: nested sections, paths as text."""
        data = dataclasses.asdict(self)
        for name in PATHS:
            data[name] = str(data[name]) if data[name] is not None else None
        data["agent_overrides"] = dict(self.agent_overrides)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigurationError: If a field is unknown to this version, or holds what it cannot.
        """
        sections = {
            "env": EnvConfig,
            "actors": ActorsConfig,
            "replay": ReplayConfig,
            "learner": LearnerConfig,
        }
        sections["placement"] = PlacementConfig
        sections["gateway"] = GatewayConfig
        values = dict(data)
        try:
            for name, kind in sections.items():
                values[name] = kind(**values.get(name, {}))
            for name in PATHS:
                values[name] = Path(values[name]) if values.get(name) else None
            config = cls(**values)
            config.to_dict()
        except TypeError as error:
            raise ConfigurationError(f"config.json is of another version: {error}") from error
        except RecursionError:
            raise ConfigurationError("config.json is nested too deeply; restore it") from None
        strange = [
            *normalize(config),
            *(
                text
                for name in sections
                for text in normalize(getattr(config, name), prefix=f"{name}.")
            ),
        ]
        if strange:
            raise ConfigurationError(f"config.json: {'; '.join(strange)}; restore it from a copy")
        return config
