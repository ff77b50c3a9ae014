"""The options `--cluster`, `--workers` and `--insecure-cluster`: processes of dask that share the work of a command.

A dask scheduler and its workers run every function that a connected client sends. Clusters that headatlas starts
therefore use certificates that exist for this run only (TLS), and a local cluster listens on this machine alone. The
address of a running scheduler needs TLS too, unless the scheduler is on this machine.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import ipaddress
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import typer

from ..errors import ConfigError, HeadAtlasError, MissingExtraError
from ..reading.ordered_tasks import tasks_on

if TYPE_CHECKING:
    from dask.distributed import Client

ClusterKind = Literal["local", "slurm", "pbs", "cuda"]
DEFAULT_WORKERS = 2
_CONNECT_S = 10
_START_S = 300
_TASK_ATTEMPTS = 4

ClusterTarget = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="KIND|ADDRESS",
        help="Share the work among processes: local (on this machine), slurm, pbs, cuda (one for each GPU), or the "
        "address of a dask scheduler, such as tls://host:8786. All must see the store at the same path.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help=f"Number of processes that --cluster starts; default {DEFAULT_WORKERS}, for cuda one for each GPU.",
        show_default=False,
    ),
]
InsecureCluster = Annotated[
    bool,
    typer.Option(
        "--insecure-cluster",
        help="Allow a scheduler on another machine without TLS. Everyone in its network can then run code as you.",
    ),
]


def shares_tasks(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--cluster`, `--workers` and `--insecure-cluster` to a command. Its tasks then run on the workers.

    The cluster starts with the first task, so a command that fails earlier or has its answer in the cache starts none.
    A task whose worker ended runs again, up to `_TASK_ATTEMPTS` times.
    """
    added = {"cluster": ClusterTarget, "workers": Workers, "insecure_cluster": InsecureCluster}
    defaults = {"cluster": None, "workers": None, "insecure_cluster": False}

    @functools.wraps(command)
    def with_cluster(*arguments: Any, **options: Any) -> None:
        target, n_workers, is_insecure_allowed = (options.pop(name, default) for name, default in defaults.items())
        cluster = cluster_options(target, n_workers, is_insecure_allowed=is_insecure_allowed)
        if cluster is None:
            command(*arguments, **options)
            return
        cluster = replace(cluster, task_attempts=_TASK_ATTEMPTS)
        with ExitStack() as stack:
            connect = functools.cache(lambda: stack.enter_context(open_cluster(cluster)))
            stack.enter_context(tasks_on(connect))
            command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
        for name, annotation in added.items()
    ]
    signature = signature.replace(parameters=[*signature.parameters.values(), *parameters])
    with_cluster.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    with_cluster.__signature__ = signature  # type: ignore[attr-defined]
    return with_cluster


@dataclass(frozen=True)
class ClusterOptions:
    """A cluster to start or to connect to. Options that are None have the default of dask-jobqueue."""

    target: str
    """A `ClusterKind`, or the address of a scheduler."""
    n_workers: int | None = None
    is_insecure_allowed: bool = False
    threads_per_worker: int = 1
    """Number of tasks that a worker runs at a time."""
    queue: str | None = None
    account: str | None = None
    walltime: str | None = None
    memory: str | None = None
    cores: int | None = None
    task_attempts: int = 1
    """Number of workers that may end during a task before it is an error."""
    shared_folder: Path | None = None
    """Folder that the machines of a batch system share. The keys of the connection are written there."""

    @property
    def kind(self) -> ClusterKind | None:
        """The kind of a cluster that headatlas starts; None for an address."""
        return next((kind for kind in get_args(ClusterKind) if kind == self.target), None)

    def check(self) -> None:
        """Check the address of a scheduler.

        Raises
        ------
        ConfigError
            It is no address, or its connection is not encrypted and leaves this machine.
        """
        if self.kind is not None:
            return
        if self.n_workers is not None:
            raise ConfigError("--workers is for clusters that headatlas starts; a scheduler has the workers it has.")
        try:
            address = urlsplit(self.target)
            host, port = address.hostname, address.port
        except ValueError:
            host = port = None
        if not host or not port or urlsplit(self.target).scheme not in ("tls", "tcp"):
            kinds = ", ".join(get_args(ClusterKind))
            raise ConfigError(
                f"--cluster is {self.target!r}; expected {kinds}, or the address of a dask scheduler such as "
                "tls://host:8786."
            )
        if self.target.startswith("tcp") and not _is_loopback(host) and not self.is_insecure_allowed:
            raise ConfigError(
                f"--cluster {self.target} is a connection without encryption to another machine; everyone in its network "
                "could run code as you. Start the scheduler with TLS and use tls://, or add --insecure-cluster in a "
                "network that you trust."
            )


def cluster_options(
    target: str | None, n_workers: int | None = None, *, is_insecure_allowed: bool = False
) -> ClusterOptions | None:
    """Return the cluster that the options of a command name; None without `--cluster`.

    Raises
    ------
    ConfigError
        The address is refused, or there are other options and no `--cluster`.
    """
    if target is None:
        if n_workers is not None or is_insecure_allowed:
            raise ConfigError("--workers and --insecure-cluster belong to --cluster KIND or --cluster ADDRESS; add it.")
        return None
    options = ClusterOptions(target, n_workers, is_insecure_allowed)
    options.check()
    return options


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def open_cluster(options: ClusterOptions | None) -> Iterator[Client | None]:
    """Start a cluster, or connect to a scheduler, for the block. Yield its client; None without options.

    Raises
    ------
    ConfigError
        The options are refused (`ClusterOptions.check`), or no scheduler answers at the address.
    MissingExtraError
        A package of the kind is not installed.
    HeadAtlasError
        In the block a task ended `task_attempts` workers, or the scheduler ended.
    """
    if options is None:
        yield None
        return
    options.check()
    try:
        import dask.config
        from dask.distributed import Client
        from distributed import KilledWorker
    except ImportError:
        raise MissingExtraError(
            "--cluster needs the package distributed: pip install 'headatlas[distributed]'"
        ) from None
    with ExitStack() as stack:
        if options.kind is None:
            cluster: Any = options.target
        else:
            settings = {
                "distributed.scheduler.allowed-failures": options.task_attempts - 1,
                # A process that starts on a busy machine connects late.
                "distributed.comm.timeouts.connect": f"{_START_S}s",
            }
            stack.enter_context(dask.config.set(settings))
            cluster = stack.enter_context(start_cluster(options, options.kind))
        try:
            client = Client(cluster, timeout=_CONNECT_S if options.kind is None else _START_S)
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no dask scheduler answers at {options.target} ({error}). Start one with `dask scheduler`. For tls:// "
                "name the certificates in dask's configuration (distributed.comm.tls)."
            ) from None
        stack.enter_context(client)
        try:
            yield client
        except KilledWorker:
            raise HeadAtlasError(
                f"{options.task_attempts} workers ended during a task. They may lack memory: start fewer with --workers, "
                "or run the command without --cluster."
            ) from None
        except CancelledError:
            raise HeadAtlasError(
                f"the dask scheduler {options.target} ended or lost the tasks. Run the same command again."
            ) from None


def start_cluster(options: ClusterOptions, kind: ClusterKind) -> Any:
    """Start a cluster of dask. Slurm and PBS start the workers as jobs, which wait in a queue.

    Raises
    ------
    MissingExtraError
        A package of the kind is not installed.
    ConfigError
        The package refuses an option, such as a missing `cores` or `memory`.
    """
    n_workers = options.n_workers or DEFAULT_WORKERS
    try:
        from distributed.security import Security

        if kind in ("slurm", "pbs"):
            package = importlib.import_module("dask_jobqueue")
            cluster_class = package.SLURMCluster if kind == "slurm" else package.PBSCluster
            cluster = cluster_class(**batch_options(options), security=Security.temporary())
            cluster.scale(n_workers)
            return cluster
        local = {
            "threads_per_worker": options.threads_per_worker,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "security": Security.temporary(),
            "silence_logs": logging.CRITICAL,
        }
        if kind == "cuda":
            return importlib.import_module("dask_cuda").LocalCUDACluster(n_workers=options.n_workers, **local)
        from dask.distributed import LocalCluster

        return LocalCluster(n_workers=n_workers, memory_limit=0, preload=[_IGNORE_INTERRUPT], **local)
    except ImportError as error:
        extra = "gpu" if kind == "cuda" else "distributed"
        raise MissingExtraError(
            f"--cluster {kind} needs a package that is not installed ({error}): pip install 'headatlas[{extra}]'"
        ) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--cluster {kind}: {error}") from None


_IGNORE_INTERRUPT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Ctrl-C in a terminal reaches the workers too. Only the client acts on it, and ends them."""


def batch_options(options: ClusterOptions) -> dict[str, Any]:
    """Return the arguments of a class of dask-jobqueue: one worker process for each job of the batch system."""
    values: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("queue", "account", "walltime", "memory", "cores")
        if getattr(options, name) is not None
    }
    folder = options.shared_folder
    return values | {
        "processes": 1,
        "protocol": "tls://",
        "shared_temp_directory": None if folder is None else str(folder),
    }
