"""Compose file and Dockerfiles against what they name: settings, files, commands."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from support import ROOT
from vessa_server.api.settings import ServerSettings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICE_KEYS = {
    "build", "command", "depends_on", "environment", "healthcheck", "image", "ports",
    "profiles", "restart", "stop_grace_period", "volumes",
}  # fmt: skip
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_services_have_known_keys_and_existing_builds() -> None:
    assert set(COMPOSE["services"]) == {"redis", "server", "trainer"}
    for name, service in COMPOSE["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert ("image" in service) != ("build" in service), name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if not volume.startswith("${") else None
            assert source is None or source in COMPOSE["volumes"]
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), "not open to the network"


def test_dependencies_have_a_health_check_to_wait_for() -> None:
    dockerfile = (ROOT / "docker" / "server.Dockerfile").read_text()
    for service in COMPOSE["services"].values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in COMPOSE["services"][other] or "HEALTHCHECK" in dockerfile


def test_environment_names_are_settings() -> None:
    names = set(COMPOSE["services"]["server"]["environment"])
    for file in DOCKERFILES:
        names |= set(re.findall(r"\b(VESSA_\w+)=", file.read_text()))
    known = {f"VESSA_{field.upper()}" for field in ServerSettings.model_fields}
    assert names <= known
    values = {
        n.removeprefix("VESSA_").lower(): v
        for n, v in COMPOSE["services"]["server"]["environment"].items()
    }
    assert ServerSettings.model_validate(values).cache.startswith("redis://redis:")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_dockerfiles_copy_what_exists_and_do_not_run_as_root(file: object) -> None:
    text = (ROOT / "docker" / str(file)).read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
    assert re.search(r"^USER vessa$", text, re.MULTILINE)
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert f"!{source.split('/')[0]}" in kept


def test_commands_of_the_containers_are_understood() -> None:
    from ssl_trainer.cli import app as trainer
    from vessa_client.cli import app as client
    from vessa_server.cli import app as server

    command = COMPOSE["services"]["trainer"]["command"]
    assert CliRunner().invoke(trainer, [*command[:1], "--help"]).exit_code == 0
    for option in (word for word in command if word.startswith("--")):
        assert option in CliRunner().invoke(trainer, ["train", "--help"]).output
    assert CliRunner().invoke(server, ["serve", "--help"]).exit_code == 0
    assert "--server" in CliRunner().invoke(client, ["health", "--help"]).output


def test_an_empty_token_of_compose_means_no_token() -> None:
    assert ServerSettings.model_validate({"token": ""}).token is None
