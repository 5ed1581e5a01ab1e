"""Real services on loopback: PostgreSQL, MLflow's server, Slurm with one node, Ray.

Everything that they write is in one folder, and all their processes end with their block. None
needs systemd or root; as root, PostgreSQL runs as the user ``postgres``.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.mlflow_ui import free_port

PATIENCE = 120.0
"""Seconds for a service to start."""
ENDS = 20.0
"""Seconds for a process to end."""
PROGRAMS = os.pathsep.join(
    [
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]),
        os.environ["PATH"],
        "/usr/sbin",
        "/usr/local/sbin",
    ]
)
"""Where Debian puts the programs of the services, as a ``PATH``."""
PAGE = ROOT / "docs" / "distributed.md"
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLS = re.compile(r"^pip install .*\n", re.MULTILINE)
CELL = re.compile(r"^\|.*`((?:python|torchrun|srun) .*)` \|$", re.MULTILINE)
SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PriorityType=priority/basic
SchedulerParameters=batch_sched_delay=1,sched_interval=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=65536 Gres=gpu:{gpus}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""One node with GPUs that are only counted, so that as many jobs with one each run at once."""


def sections() -> dict[str, list[str]]:
    """The commands of ``docs/distributed.md`` by section, without ``pip install``.

    Each is a block, or a cell of a table that begins with a program; ``""`` is the top of the page.
    """
    text = PAGE.read_text(encoding="utf-8")
    found = {}
    for part in f"\n{text}".split("\n## "):
        title, _, body = part.partition("\n")
        blocks = [INSTALLS.sub("", each) for each in BLOCK.findall(body)]
        found[title] = [*CELL.findall(body), *blocks]
    return {title: each for title, each in found.items() if each}


def commands(section: str) -> list[str]:
    """The commands of a section."""
    return sections()[section]


def needs(*programs: str) -> Any:
    """Marks a test with daemons of Debian's packages, for ``tests/services/run``."""
    missing = [name for name in programs if shutil.which(name, path=PROGRAMS) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")

    def mark(test: Any) -> Any:
        return pytest.mark.services(pytest.mark.whole(skip(test)))

    return mark


def wait_until(is_ready: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not is_ready():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def end_all(processes: Sequence[psutil.Process]) -> None:
    """End processes, in the end by SIGKILL."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=ENDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=ENDS)


def started_in(folder: Path) -> list[psutil.Process]:
    """Processes whose command line names a folder, other than this one, and their children."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(folder) in w for w in process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return list(dict.fromkeys(found))


@dataclass
class Postgres:
    """A PostgreSQL server with the user ``lab`` and the databases of the documentation."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    @property
    def environment(self) -> dict[str, str]:
        return {"PGPASSWORD": self.password}

    def create(self) -> None:
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "--auth-local=trust", "--auth-host=scram-sha-256", "-D", self.data)
        self.start()
        (block, _) = commands("PostgreSQL")
        self._run("bash", "-ec", block)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run(
            "pg_ctl", "-D", self.data, "-l", self.folder / "log", "-o", options, "-w", "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _run(self, *command: str | Path) -> None:
        server = {"PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": _owner()}
        subprocess.run(
            command,
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            user=_owner(),
            env={**os.environ, **self.environment, **server, "PATH": PROGRAMS},
        )


def _owner() -> str:
    """As whom PostgreSQL runs, which refuses to run as root."""
    return "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    server = Postgres(folder)
    server.create()
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Tracking:
    """MLflow's server behind basic authentication.

    Attributes:
        folder: with the log, the artifacts and the database of users.
        address: of the server.
        environment: of a user, for MLflow's clients.
    """

    folder: Path
    address: str
    environment: Mapping[str, str]


@contextmanager
def mlflow_server(
    folder: Path, backend: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Tracking]:
    """The server of the documentation, with the user of the documentation.

    Args:
        folder: for all that it writes.
        backend: URI of the database in place of the documentation's.
        environment: with what opens it.
    """
    folder.mkdir()
    serve, add_user, _ = commands("A shared tracking server")
    port = free_port()
    serve = serve.replace("--port 5000 --workers 2", f"--port {port} --workers 1")
    if backend is not None:
        serve = re.sub(r"postgresql\S+", lambda _: backend, serve)
    admin = secrets.token_urlsafe(12)
    password = secrets.token_urlsafe(12)
    own = {
        **os.environ,
        **(environment or {}),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NEW_PASSWORD": password,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-ec", serve], cwd=folder, env=own, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, "mlflow server")
        assert process.poll() is None, (folder / "log").read_text()
        block = add_user.replace(":5000", f":{port}")
        subprocess.run(["bash", "-ec", block], cwd=folder, env=own, check=True)
        user = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": password}
        address = f"http://127.0.0.1:{port}"
        yield Tracking(folder, address, {"MLFLOW_TRACKING_URI": address, **user})
    finally:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            end_all([parent, *parent.children(recursive=True)])
        process.wait(ENDS)


@contextmanager
def slurm(folder: Path, *, gpus: int = 2) -> Iterator[dict[str, str]]:
    """Slurm with one node; gives the environment in which its commands find it."""
    for part in ("munge", "state", "spool"):
        (folder / part).mkdir(parents=True)
        (folder / part).chmod(0o700)
    (folder / "munge" / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge" / "key").chmod(0o400)
    munge = {
        name: f"--{name}={folder}/munge/{name.split('-')[0]}" for name in ("key-file", "socket")
    }
    files = [f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed")]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        SLURM.format(
            host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
            controller=free_port(),
            node=free_port(),
            gpus=gpus,
        )
    )
    for number in range(gpus):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    environment = {"SLURM_CONF": str(configuration)}
    own = {**os.environ, **environment}
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge.values(), *files],
            ["slurmctld", "-D", "-f", str(configuration)],
            ["slurmd", "-D", "-f", str(configuration)],
        ):
            program = shutil.which(command[0], path=PROGRAMS)
            assert program is not None, f"{command[0]} is not installed"
            with (folder / f"{command[0]}.out").open("w") as log:
                daemons.append(
                    subprocess.Popen([program, *command[1:]], env=own, stdout=log, stderr=log)
                )
            if command[0] == "munged":
                wait_until((folder / "munge" / "socket").exists, "munged")
        wait_until(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], own), "slurmd")
        yield environment
    finally:
        subprocess.run(["scancel", "--full", "--user", str(os.getuid())], env=own, check=False)
        with suppress(AssertionError):
            wait_until(lambda: not _output(["squeue", "-h"], own), "jobs", ENDS)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(ENDS)
        end_all(started_in(folder))


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    return subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False
    ).stdout


@contextmanager
def ray(
    folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Ray as the documentation starts it, with two GPUs that are only counted.

    Args:
        folder: of a short name, since Ray's sockets are below it.
        environment: of the trials.

    Yields:
        Its address, and the environment of commands that use it.
    """
    port = free_port()
    lines = commands("Sweeps on Ray")[0].splitlines()
    start = "\n".join(line for line in lines if not line.startswith("python"))
    folder.mkdir()
    own = {
        "HOME": str(folder),  # of the token
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone
    }
    of_node = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 8, "GPU": 2}',
        "RAY_worker_niceness": "0",
    }
    try:
        subprocess.run(
            ["bash", "-ec", start.replace("6379", str(port))],
            env={**os.environ, **(environment or {}), **own, **of_node},
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        yield f"127.0.0.1:{port}", own
    finally:
        end_all(started_in(folder))
        shutil.rmtree(folder, ignore_errors=True)
