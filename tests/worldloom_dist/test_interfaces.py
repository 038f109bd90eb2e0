"""Every role keeps its Protocol to the letter, and a type checker sees every wrong call."""

import ast
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from mypy import api as mypy

from worldloom_dist import interfaces
from worldloom_dist.rpc import actor_client
from worldloom_dist.runtime.coordinator_role import CoordinatorRole
from worldloom_dist.runtime.gateway_role import GatewayRole
from worldloom_dist.runtime.hub_role import HubRole
from worldloom_dist.runtime.learner_roles import LearnerRole
from worldloom_dist.runtime.policy_roles import EvaluatorRole, InferenceRole
from worldloom_dist.runtime.shard_role import ShardRole
from worldloom_dist.runtime.weight_roles import WeightStoreRole
from worldloom_dist.runtime.worker_role import WorkerRole

ROOT = Path(__file__).parents[2]
ROLES = {
    interfaces.Coordinator: CoordinatorRole,
    interfaces.Evaluator: EvaluatorRole,
    interfaces.Gateway: GatewayRole,
    interfaces.Hub: HubRole,
    interfaces.Inference: InferenceRole,
    interfaces.Learner: LearnerRole,
    interfaces.Shard: ShardRole,
    interfaces.WeightStore: WeightStoreRole,
    interfaces.Worker: WorkerRole,
}
PARTS = {interfaces.Process, interfaces.Stoppable}


def methods_of(kind: type) -> dict[str, typing.Any]:
    return {
        name: method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def shape_of(method: typing.Any) -> tuple[object, ...]:
    """What a caller depends on: event loop or thread, and the whole signature, but for what Ray
    adds to the methods of a class that was made an actor in this process.
    """
    parameters = [
        (p.name, p.kind, p.default)
        for p in inspect.signature(method).parameters.values()
        if p.name != "_ray_trace_ctx"
    ]
    hints = {
        name: hint
        for name, hint in typing.get_type_hints(method).items()
        if name != "_ray_trace_ctx"
    }
    return inspect.iscoroutinefunction(method), parameters, hints


def test_every_protocol_of_a_role_is_compared() -> None:
    protocols = {
        kind
        for kind in vars(interfaces).values()
        if inspect.isclass(kind)
        and kind.__module__ == interfaces.__name__
        and typing.Protocol in kind.__bases__
    }
    assert protocols == {*ROLES, *PARTS}


@pytest.mark.parametrize("protocol", ROLES, ids=lambda protocol: protocol.__name__)
def test_a_role_has_exactly_the_methods_that_are_called_with_exactly_their_signatures(protocol):
    promised = methods_of(protocol)
    kept = methods_of(ROLES[protocol])
    assert kept.keys() == promised.keys(), "what no process calls is no public method of a role"
    for name, method in promised.items():
        assert shape_of(kept[name]) == shape_of(method), name
    assert "ping" in promised


WRONG = {
    "clients.call(Coordinator.updates_do)": "has no attribute",
    "clients.call('updates_due')": "No overload",
    "clients.call(Hub.snapshot)": "No overload",
    "clients.call(Coordinator.is_live)": "No overload",
    "clients.call(Coordinator.is_live, 'one')": "No overload",
    "clients.call(Coordinator.is_live, 1, 2)": "No overload",
    "late: str = clients.call(Coordinator.updates_due)": "Incompatible types",
    "clients.notify('stored', 1)": "arg-type",
    "clients.notify(Coordinator.stored, 'one')": "arg-type",
    "clients.notify(Coordinator.stored, shards=1)": "call-arg",
    "clients.acall(Coordinator.report, 0, 1, 2)": "No overload",
    "submit(handle, Evaluator.evaluate, 1.5)": "No overload",
    "submit(handle, 'evaluate', 1)": "No overload",
    "RpcClient(shard_client(0), 'append', None, 5.0)": "arg-type",
    "RpcClient(shard_client(0), Coordinator.admit, None, 5.0)": "arg-type",
    "RpcClient(shard_client(0), Shard.append, None, 5.0).call([])": "arg-type",
    "AsyncRpcClient(clients, Coordinator.admit).call((0, '', 1, [16]))": "arg-type",
}
RIGHT = """
due: int = clients.call(Coordinator.updates_due)
clients.within(timeout_s=None).call(Coordinator.is_live, 0)
clients.notify(Coordinator.stored, 0)
chunk_is_new: bool = RpcClient(shard_client(0), Shard.append, None, 5.0).call(chunk)
numbers: dict[str, float] = hub_client().call(Hub.snapshot)
submit(handle, Evaluator.evaluate, 1, is_last=True)
"""
# what no call of a role depends on, and what would take most of the time
NOT_READ = "ray torch numpy worldloom.data worldloom.training worldloom.models worldloom.factory"
HEAD = """
from typing import Any
from worldloom.core.sequence import Chunk
from worldloom_dist.interfaces import *
from worldloom_dist.rpc.actor_client import submit
from worldloom_dist.rpc.async_client import AsyncRpcClient
from worldloom_dist.rpc.connection import RpcClient
clients = coordinator_client()
handle: Any = None
chunk: Chunk
"""


def test_a_type_checker_sees_every_wrong_call(tmp_path: Path) -> None:
    program = tmp_path / "calls.py"
    program.write_text(HEAD + RIGHT + "\n".join(WRONG))
    first = len((HEAD + RIGHT).splitlines()) + 1
    config = tmp_path / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {ROOT}\nfollow_imports = silent\n"
        + "".join(
            f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
            for name in NOT_READ.split()
        )
    )
    options = ["--config-file", str(config), "--no-incremental", "--no-error-summary"]
    found, problem, _ = mypy.run([*options, "--cache-dir", str(tmp_path / "cache"), str(program)])
    assert not problem
    errors: dict[int, str] = {}
    for line in found.splitlines():
        number = int(line.split(":")[1])
        errors[number] = errors.get(number, "") + line
    assert set(errors) == set(range(first, first + len(WRONG))), found
    for number, expected in enumerate(WRONG.values(), first):
        assert expected in errors[number], errors[number]


def calls_by_name(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and kind of every call of a role that a type checker cannot see."""
    made = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "ray.remote(" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        func = node.func
        name = getattr(func, "attr", getattr(func, "id", ""))
        text = node.args[:2] if name in ("submit", "RpcClient", "AsyncRpcClient") else node.args[:1]
        is_call = name in ("call", "acall", "notify", "submit", "RpcClient", "AsyncRpcClient")
        if is_call and any(
            isinstance(one, ast.JoinedStr)
            or (isinstance(one, ast.Constant) and isinstance(one.value, str))
            for one in text
        ):
            yield node.lineno, "a method by a string"
        if name == "remote" and isinstance(func, ast.Attribute):
            of = func.value
            while isinstance(of, ast.Call) and getattr(of.func, "attr", "") == "options":
                of = of.func.value
            is_ray = isinstance(of, ast.Name) and of.id in {"ray", *made}
            is_direct = isinstance(of, ast.Call) and ast.unparse(of.func) == "ray.remote"
            if not (is_ray or is_direct):
                yield node.lineno, "a method of a handle"


def test_no_call_goes_by_a_string_or_past_its_protocol() -> None:
    the_one_proxy = Path(actor_client.__file__)
    found = [
        f"{path.relative_to(ROOT)}:{line}: {kind}"
        for path in sorted((ROOT / "worldloom_dist").rglob("*.py"))
        if path != the_one_proxy
        for line, kind in calls_by_name(ast.parse(path.read_text()))
    ]
    assert not found, "name the method by its Protocol: " + ", ".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "coordinator.call('updates_due')",
        "await self._coordinator.acall(f'join')",
        "hub.notify('emit', 1)",
        "submit(handle, 'stop')",
        "RpcClient(shard, 'append', None, 5.0)",
        "role.handle.stop.remote()",
        "role.handle.stop.options(num_returns=1).remote()",
        "getattr(handle, method).remote()",
        "stop = role.handle.stop\nstop.remote()",
    ],
)
def test_a_call_by_a_string_would_be_found(code: str) -> None:
    compiled = ast.parse(code, type_comments=False)
    assert len(list(calls_by_name(compiled))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "ray.remote(kind).options(name='hub-0').remote(1)",
        "ray.remote(kind).remote(1)",
        "task = ray.remote(measure).options(num_cpus=1)\ntask.remote(plan)",
        "task = ray.remote(check)\ntask.options(num_cpus=0).remote(folder)",
        "callbacks.call(on_epoch, 1)",
    ],
)
def test_starting_an_actor_or_a_task_is_no_call_of_a_role(code: str) -> None:
    assert not list(calls_by_name(ast.parse(code)))
