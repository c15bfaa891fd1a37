"""Compose file, Dockerfiles and dashboards against what they name: settings, files, commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from typer.testing import CliRunner

from ssl_trainer.training.metrics import Metrics as TrainingMetrics
from support import ROOT, engine_of, free_port
from vessa_server.api.metrics import Metrics
from vessa_server.api.settings import ServerSettings

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image",
    "networks", "ports", "profiles", "read_only", "restart", "security_opt", "shm_size",
    "stop_grace_period", "tmpfs", "user", "volumes",
}  # fmt: skip
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))
SERVERS = ("server", "server-gpu", "server-triton")
PROFILES = {
    "server-gpu": "gpu",
    "trainer-gpu": "gpu",
    "server-triton": "triton",
    "triton": "triton",
    "trainer": "train",
    "client": "client",
    "prometheus": "observability",
    "grafana": "observability",
}


def _plain(text: str) -> str:
    """With the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_who_names_no_profile_gets_a_server_and_its_cache() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    expected: dict[str, list[str] | None] = {"redis": None, "server": None}
    assert profiles == expected | {name: [profile] for name, profile in PROFILES.items()}


def test_what_is_built_or_mounted_exists() -> None:
    for name, service in SERVICES.items():
        assert set(service) <= SERVICE_KEYS, name
        build = service.get("build")
        if build:
            file = ROOT / build["dockerfile"]
            assert file.is_file(), name
            assert "target" not in build or f" AS {build['target']}\n" in file.read_text()
            arguments = set(re.findall(r"^ARG (\w+)", file.read_text(), re.MULTILINE))
            assert set(build["args"]) <= arguments
        for volume in service.get("volumes", []):
            source = _plain(volume).split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", _plain(port)), "not open to the network"


COMMANDS = [c for c in ("docker compose", "podman-compose") if shutil.which(c.split()[0])]


@pytest.mark.skipif(not COMMANDS, reason="takes docker or podman-compose")
@pytest.mark.parametrize("profile", [None, *sorted({*PROFILES.values()})])
def test_compose_reads_each_profile(profile: str | None) -> None:
    command = [*COMMANDS[-1].split(), *([f"--profile={profile}"] if profile else [])]
    said = subprocess.run(
        [*command, "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    services = yaml.safe_load(said.stdout)["services"]
    assert {"redis", "server", *(n for n, p in PROFILES.items() if p == profile)} <= set(services)
    assert "${" not in said.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_closed(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    long_running = name not in ("trainer", "trainer-gpu", "client")
    # Docker brings `on-failure` back neither after a reboot nor after its last try.
    assert service.get("restart") == ("unless-stopped" if long_running else None)


def test_dependencies_have_a_health_check_to_wait_for() -> None:
    for service in SERVICES.values():
        needed = service.get("depends_on", {})
        for other, condition in needed.items() if isinstance(needed, dict) else ():
            assert condition == {"condition": "service_healthy"}
            build = SERVICES[other].get("build")
            checked = build and "HEALTHCHECK" in (ROOT / build["dockerfile"]).read_text()
            assert checked or "healthcheck" in SERVICES[other]


def test_the_example_of_settings_has_what_compose_reads() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(
        line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#?\w+=", line)
    )
    read = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT))
    assert set(shown) == set(read)
    # Examples of another value.
    asked_for = {"VESSA_CLIENT_EXTRAS", "VESSA_TORCH_INDEX", "VESSA_WEIGHTS"}
    assert {n: v for n, v in shown.items() if n not in asked_for} == {
        n: v for n, v in read.items() if n not in asked_for
    }


@pytest.mark.parametrize("name", SERVERS)
def test_environment_names_are_settings_and_have_their_defaults(name: str) -> None:
    values = {
        key.removeprefix("VESSA_").lower(): _plain(value)
        for key, value in SERVICES[name]["environment"].items()
    }
    mounted = [volume.rsplit(":", 1)[-1] for volume in SERVICES[name]["volumes"]]
    assert values.pop("studies") in mounted
    runs = f":{values.pop('runs_dir')}"
    written = next(v for v in SERVICES["trainer"]["volumes"] if v.endswith(runs))
    assert f"{written}:ro" in SERVICES[name]["volumes"]
    settings = ServerSettings.model_validate(values)
    plain = ServerSettings()
    own = {"cache", "bank", "weights", "device", "batch_mode", "runtime"}
    for field in values.keys() - own:
        assert getattr(settings, field) == getattr(plain, field), field
    assert settings.cache.startswith("redis://redis:")
    assert settings.token is None
    assert (settings.device == "cuda") == (name == "server-gpu")
    assert settings.runtime.startswith("triton://triton:") == (name == "server-triton")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_dockerfiles_copy_what_exists_and_do_not_run_as_root(file: Path) -> None:
    text = file.read_text()
    known = {f"VESSA_{field.upper()}" for field in ServerSettings.model_fields}
    assert set(re.findall(r"\b(VESSA_\w+)=", text)) <= known
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
        assert any(source == k[1:] or source.startswith(k[1:] + "/") for k in kept if k[0] == "!")
    last_stages = re.split(r"^FROM .*$", text, flags=re.MULTILINE)
    assert all("USER vessa" in stage for stage in last_stages if "\nCMD" in stage)


def test_commands_of_the_containers_are_understood() -> None:
    from ssl_trainer.cli import app as trainer
    from vessa_client.cli import app as client
    from vessa_server.cli import app as server

    command = SERVICES["trainer"]["command"]
    assert CliRunner().invoke(trainer, [*command[:1], "--help"]).exit_code == 0
    for option in (word for word in command if word.startswith("--")):
        assert option in CliRunner().invoke(trainer, ["train", "--help"]).output
    assert CliRunner().invoke(server, ["serve", "--help"]).exit_code == 0
    assert "--server" in CliRunner().invoke(client, ["health", "--help"]).output


def test_dashboard_and_alerts_ask_for_what_is_exposed(tmp_path: Path) -> None:
    with closing(TrainingMetrics(free_port())) as training:
        exposed = _names(Metrics([engine_of(tmp_path)]).expose()) | _names(
            generate_latest(training.registry)
        )
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "vessa.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text())
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    for expression in asked:
        names = set(re.findall(r"\b(vessa_\w+|up)\b", expression))
        assert names
        assert names <= exposed | {"up"}, expression


def _names(text: bytes) -> set[str]:
    """Of all series in Prometheus's text format."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text.decode(), re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + part for part in parts}
    return names


def test_a_trainings_scalars_can_be_read(tmp_path: Path) -> None:
    port = free_port()
    with closing(TrainingMetrics(port)) as metrics:
        metrics.observe(20, {"loss/total": 0.5, "val/dice": 0.25})
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        with pytest.raises(OSError, match="in use"):
            TrainingMetrics(port)
    assert 'vessa_training{name="loss/total"} 0.5' in text
    assert 'vessa_training{name="val/dice"} 0.25' in text
    assert "vessa_training_step 20.0" in text
