"""Builds the containers, uses them as people do, breaks them, and says what it saw.

    make containers                                            with Docker
    make containers COMPOSE=podman-compose ENGINE=podman       with podman

Settings of compose (``.env.example``) may be in the environment, VESSA_TORCH_INDEX for images
without CUDA, VESSA_TRITON for another tritonserver.

Writes ``benchmarks/results/containers.json``: sizes, times, and what was not run. Takes some
minutes and, with CUDA, some 20 GB of disk. It has a project and images of its own and reads no
``.env``, so what runs already goes on. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "containers.json"
SAMPLE = "examples/acdc-sample"
ANNOTATED = f"{SAMPLE}/train/patient099_frame01"
CLASSES = ("right ventricle", "myocardium", "left ventricle")
# Of the training: few updates, all with VESSA's answers.
SHORT = {
    "steps: 2500": "steps: 50",
    "validate_every: 250": "validate_every: 50\nassistant: {decay_end: 1.0, required: true}",
}
# MiB: of an image without CUDA.
MOST = {"server": 2500, "client": 150}
PROJECT = "vessacheck"
PROFILES = [f"--profile={name}" for name in ("train", "client", "triton", "observability")]
IMAGES = {
    f"VESSA_{name.upper()}_IMAGE": f"{PROJECT}-{name}"
    for name in ("server", "trainer", "client", "triton")
}
PORTS = {"VESSA_GRPC_PORT": "55051", "VESSA_HTTP_PORT": "58080", "VESSA_PROMETHEUS_PORT": "59090"}


class Engine:
    """Docker or podman, with the compose file of this repository."""

    def __init__(self, compose: str, engine: str, environment: dict[str, str]) -> None:
        self.compose_command = shlex.split(compose)
        self.command = shlex.split(engine)
        self.environment = {**os.environ, **PORTS, **IMAGES, **environment}

    def run(self, *words: str) -> str:
        """A command of the engine; its output."""
        return _expected(self._run([*self.command, *words]))

    def compose(self, *words: str) -> str:
        """A command of compose; its output."""
        return _expected(self.tried(*words))

    def tried(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of compose that may fail."""
        alone = ("--env-file", os.devnull, "-p", PROJECT)
        return self._run([*self.compose_command, *alone, *PROFILES, *words])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def container(self, service: str) -> str:
        """Name of the container of a service."""
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        found = self.run("ps", "-a", "-q", "--filter", label, "--filter", project).split()
        if not found:
            raise SystemExit(f"{service}: no container")
        return found[0]

    @contextlib.contextmanager
    def health_checks(self) -> Iterator[None]:
        """Podman without systemd runs none by itself."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(2):
                for name in self._run([*self.command, "ps", "-q"]).stdout.split():
                    self._run([*self.command, "healthcheck", "run", name])

        thread = threading.Thread(target=go_on)
        if "podman" in self.command[-1]:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()


class Check:
    """Steps, one after the other; the first that fails ends it."""

    def __init__(self, engine: Engine, work: Path) -> None:
        self.engine = engine
        self.work = work
        self.steps: list[dict[str, object]] = []

    def step(self, what: str, does: Callable[[], str]) -> None:
        """Do one, and note how long it took and what was seen."""
        print(f"{what} ...", flush=True)
        start = time.monotonic()
        saw = does()
        seconds = round(time.monotonic() - start, 1)
        self.steps.append({"step": what, "seconds": seconds, "saw": saw})
        print(f"    {seconds} s: {saw}", flush=True)

    def client(self, *words: str) -> str:
        """A command of the client's container."""
        return self.engine.compose("run", "--rm", "client", *words)

    def healthy(self, service: str = "server", within: float = 180) -> str:
        """Wait for a server."""
        end = time.monotonic() + within
        asks = ("exec", "-T", service, "vessa", "health", "--server", "localhost:50051")
        while self.engine.tried(*asks).returncode:
            if time.monotonic() > end:
                logs = self.engine.tried("logs", service).stdout
                raise SystemExit(f"{service}: not healthy within {within:g} s:\n{logs[-4000:]}")
            time.sleep(1)
        return "healthy"

    def config(self) -> str:
        """What compose makes of the file, with every profile."""
        names = self.engine.compose("--profile=gpu", "config", "--services").split()
        expected = {"redis", "server", "server-gpu", "server-triton", "triton", "trainer", "client"}
        if not expected <= set(names):
            raise SystemExit(f"services: {names}")
        return ", ".join(sorted(names))

    def build(self) -> str:
        """All that is of this repository."""
        self.engine.compose("build")
        return "server, trainer, client, triton"

    def images(self) -> str:
        """Sizes and users."""
        lines = []
        named = self.engine.environment
        without_cuda = bool(named.get("VESSA_TORCH_INDEX") or named.get("VESSA_TORCH"))
        for name in ("server", "trainer", "client"):
            form = "{{.Size}} {{.Config.User}}"
            inspected = self.engine.run("image", "inspect", "--format", form, f"{PROJECT}-{name}")
            size, user = inspected.split()
            mib = int(size) / 2**20
            lines.append(f"{name} {mib:,.0f} MiB")
            if user != "vessa":
                raise SystemExit(f"{name}: runs as {user}")
            if mib > MOST.get(name, mib) and (name == "client" or without_cuda):
                raise SystemExit(f"{name}: {mib:,.0f} MiB, expected at most {MOST[name]}")
        return ", ".join(lines)

    def closed(self) -> str:
        """Nobody is root, and nothing but the named places can be written."""
        inside = ("exec", "-T", "server", "sh", "-c")
        user = self.engine.compose(*inside, "id -u").strip()
        tries = "touch /opt/x /home/vessa/x; touch /data/x /studies/x && rm /data/x /studies/x"
        said = self.engine.compose(*inside, tries)
        if user != "1000" or said.count("Read-only") != 2:
            raise SystemExit(f"user {user}; {said}")
        return "user 1000; only /data, /studies and /tmp can be written"

    def templates(self) -> str:
        """How many the bank has."""
        found = self.client("templates", "list")
        if not all(name in found for name in CLASSES):
            raise SystemExit(f"classes are missing in the bank:\n{found}")
        return "templates of all classes"

    def fill(self) -> str:
        """Put an annotated volume in."""
        words = [word for name in CLASSES for word in ("-c", name)]
        self.client("templates", "add", f"/work/{ANNOTATED}.nii.gz", *words)
        return self.templates()

    def label(self, out: str) -> str:
        """Label volumes that it has no label for."""
        self.client("label", f"/work/{SAMPLE}/val", "--out", f"/work/{out}")
        labels = sorted(file.name for file in (self.work / out).glob("*_pseudo.nii.gz"))
        if len(labels) != 3:
            raise SystemExit(f"labels: {labels}")
        return f"{len(labels)} volumes"

    def train(self) -> str:
        """By the service's own command: some updates, all with VESSA's answers, and the report."""
        said = self.engine.compose("run", "--rm", "trainer")
        report = self.work / "runs" / "acdc" / "report.md"
        answered = [line for line in report.read_text().splitlines() if "answered" in line]
        if not answered or "answered 100 %" not in answered[0]:
            raise SystemExit(f"{answered}\n{said[-4000:]}")
        return answered[0].removeprefix("- VESSA: ")

    def killed(self) -> str:
        """The server dies as by a lack of memory, and is back with its bank."""
        name = self.engine.container("server")
        process = int(self.engine.run("inspect", "--format", "{{.State.Pid}}", name))
        # An engine on another machine, or in a virtual one, has other numbers.
        command = Path(f"/proc/{process}/cmdline")
        if not command.is_file() or b"vessa-server" not in command.read_bytes():
            raise SystemExit("the engine's processes are not this machine's: --without killed")
        os.kill(process, signal.SIGKILL)
        self.healthy()
        return self.templates()

    def without_redis(self) -> str:
        """Redis goes away: answers go on."""
        self.engine.compose("kill", "redis")
        saw = self.label("without_redis")
        self.engine.compose("start", "redis")
        return saw

    def up(self) -> str:
        """Start the server and what it needs."""
        self.engine.compose("up", "-d", "server")
        return self.healthy()

    def again(self) -> str:
        """Down and up: nothing is lost."""
        self.engine.compose("down")
        self.up()
        return self.templates()

    def refused(self) -> str:
        """What cannot work is one line in the log and an exit code."""
        wrong = {
            "VESSA_WEIGHTS=/nowhere": "weights",
            "VESSA_BANK=/opt/bank": "bank",
            "VESSA_DEVICE=cuda": "cuda",
            "VESSA_RUNTIME=triton://nowhere:8001": "triton",
        }
        for setting, word in wrong.items():
            done = self.engine.tried("run", "--rm", "--no-deps", "-e", setting, "server")
            said = done.stdout
            if not done.returncode or word not in said.lower() or "Traceback" in said:
                raise SystemExit(f"{setting}: ended with {done.returncode}\n{said}")
        return ", ".join(wrong)

    def triton(self) -> str:
        """The same with the model on a tritonserver."""
        self.engine.compose("down")
        self.engine.compose("up", "-d", "server-triton")
        self.healthy("server-triton")
        info = self.engine.compose("exec", "-T", "server-triton", "vessa", "info")
        if "triton" not in info:
            raise SystemExit(info)
        return self.label("by_triton")

    def prometheus(self) -> str:
        """Scrapes the server, with the rules."""
        self.engine.compose("up", "-d", "server", "prometheus")
        self.healthy()
        self.label("for_prometheus")
        address = f"http://127.0.0.1:{PORTS['VESSA_PROMETHEUS_PORT']}/api/v1"
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                found = _get(f"{address}/query?query=vessa_predicted_iou_count")["data"]["result"]
                if found:
                    break
            if time.monotonic() > end:
                logs = self.engine.tried("logs", "prometheus").stdout
                raise SystemExit(f"prometheus: no metrics within 120 s:\n{logs[-4000:]}")
            time.sleep(2)
        rules = _get(f"{address}/rules")["data"]["groups"][0]["rules"]
        if any(rule["health"] == "err" for rule in rules):
            raise SystemExit(f"rules: {rules}")
        return f"{found[0]['value'][1]} predicted IoUs, {len(rules)} rules"


def _expected(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said that must not fail."""
    if done.returncode:
        raise SystemExit(f"{shlex.join(done.args)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def _shorten(config: Path) -> None:
    """Fewer updates in a configuration."""
    text = config.read_text()
    for usual, short in SHORT.items():
        if usual not in text:
            raise SystemExit(f"{config}: expected {usual}")
        text = text.replace(usual, short)
    config.write_text(text)


def _get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compose", default="docker compose")
    parser.add_argument("--engine", default="docker")
    parser.add_argument("--without", nargs="*", default=[], help="steps that are left out")
    arguments = parser.parse_args()
    without = set(arguments.without)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o777)
        shutil.copytree(ROOT / "examples", work / "examples")
        (work / "runs").mkdir()
        (work / "runs").chmod(0o777)
        _shorten(work / "examples" / "acdc.yaml")
        environment = {
            "VESSA_WORK": folder,
            "VESSA_RUNS": str(work / "runs"),
            "VESSA_CONFIG_DIR": str(work / "examples"),
        }
        engine = Engine(arguments.compose, arguments.engine, environment)
        check = Check(engine, work)
        if not without <= set(steps(check)):
            parser.error(f"--without: the steps are {', '.join(steps(check))}")
        with engine.health_checks():
            try:
                for name, does in steps(check).items():
                    if name not in without:
                        check.step(name, does)
            finally:
                engine.compose("down", "-v")
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "engine": engine.run("--version").strip(),
        "steps": check.steps,
        "not_run": sorted({"GPU", "Grafana", *without}),
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(RESULT)


def steps(check: Check) -> dict[str, Callable[[], str]]:
    """What is done, in this order."""
    return {
        "config": check.config,
        "build": check.build,
        "images": check.images,
        "up": check.up,
        "closed": check.closed,
        "fill": check.fill,
        "label": lambda: check.label("pseudo"),
        "train": check.train,
        "killed": check.killed,
        "without redis": check.without_redis,
        "again": check.again,
        "refused": check.refused,
        "prometheus": check.prometheus,
        "triton": check.triton,
    }


if __name__ == "__main__":
    main()
