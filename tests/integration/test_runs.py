"""Runs of the trainer as the server shows them: over REST, and in a real browser."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from ssl_trainer.cli import app
from ssl_trainer.training.trainer import Trainer
from support import RunningServer, engine_of, running
from support_browser import CHROMIUM, Browser, Page
from support_page import browser, page
from trainer_support import small_config, write_dataset
from vessa_server.api import runs
from vessa_server.api.settings import ServerSettings

__all__ = ["browser", "page"]  # fixtures

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
HOSTILE = "<img src=x onerror=alert(1)>"
SECRET = b"\x89PNG\r\n\x1a\nsecret"
LINE = '{"step": 10, "loss/total": 0.5, "val/dice": 0.25}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With a run that it helped with, and that ended with report and scores."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "runs").mkdir()
    with running(engine_of(folder), runs_dir=folder / "runs") as started:
        config = small_config(write_dataset(folder / "data"), server=started.grpc)
        run = folder / "runs" / "heart"
        Trainer(config, run).run()
        for command in ("report", "evaluate"):
            result = CliRunner().invoke(app, [command, str(run)])
            assert result.exit_code == 0, result.output
        yield started


@pytest.fixture
def heart(server: RunningServer) -> Path:
    assert server.settings.runs_dir is not None
    return server.settings.runs_dir / "heart"


@pytest.fixture
def other(heart: Path) -> Iterator[Path]:
    """A run beside it, to be filled."""
    made = heart.with_name("other")
    made.mkdir()
    shutil.copy(heart / "config.yaml", made)
    yield made
    shutil.rmtree(made)


def ask(server: RunningServer, path: str, status: int = 200) -> Any:
    answer = httpx.get(f"{server.http}/{path}")
    assert answer.status_code == status, answer.text
    return answer.json()


def curves_of(run: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Values by update."""
    return {
        curve["label"]: dict(zip(curve["steps"], curve["values"], strict=True))
        for chart in run["charts"]
        for curve in chart["curves"]
    }


# --- What a run says


def test_a_run_is_listed_with_what_its_log_says(server: RunningServer, heart: Path) -> None:
    lines = [json.loads(line) for line in (heart / "log.jsonl").read_text().splitlines()]
    listed = ask(server, "runs")
    assert (listed["folder"], listed["count"]) == ("runs", 1)
    run = listed["runs"][0]
    assert (run["name"], run["step"], run["steps"], run["finished"]) == ("heart", 6, 6, True)
    assert run["best_dice"] == max(line["val/dice"] for line in lines)
    requested, received = (
        sum(line.get(f"assistant/{kind}", 0) for line in lines)
        for kind in ("requested", "received")
    )
    assert run["answered"] == received / requested
    assert run["written"] == max(f.stat().st_mtime for f in heart.iterdir() if f.is_file())
    assert 0 <= run["age_seconds"] < 600
    assert run["problems"] == []


def test_a_run_has_its_curves_scores_and_pictures(server: RunningServer, heart: Path) -> None:
    lines = [json.loads(line) for line in (heart / "log.jsonl").read_text().splitlines()]
    run = ask(server, "runs/heart")
    curves = curves_of(run)
    for label, name in (
        ("total", "loss/total"),
        ("mean", "val/dice"),
        ("disc", "val/dice/disc"),
        ("VESSA's answers that came", "assistant/answered"),
        ("pixels of which the teacher is sure", "teacher/confident"),
    ):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert curves[label] == pytest.approx(expected, rel=1e-4, abs=1e-9), label
    told = run["told"]
    assert (told["classes"], told["labelled"]) == (["disc", "bar"], ["p0"])
    assert (told["server"], told["bank"]) == (server.grpc, "")
    cases = json.loads((heart / "scores_val.json").read_text())
    shown = run["scores"][0]
    assert (shown["of"], shown["cases"]) == ("val", len(cases))
    assert shown["worst"][0]["dice"] == pytest.approx(cases[0]["dice"], abs=1e-4)
    assert [picture["name"] for picture in run["pictures"]] == [
        "gallery",
        "pseudo_labels",
        "curves",
    ]
    for picture in run["pictures"]:
        answer = httpx.get(f"{server.http}/runs/heart/{picture['name']}.png")
        assert answer.headers["content-type"] == "image/png"
        assert answer.content == (heart / f"{picture['name']}.png").read_bytes()


def test_long_curves_are_means_of_stretches(server: RunningServer, other: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 1, 5000)
    entries = [{"step": 10 * i, "loss/total": v} for i, v in enumerate(values.tolist(), start=1)]
    (other / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    curve = curves_of(ask(server, "runs/other"))["total"]
    assert len(curve) <= 500
    assert max(curve) == 50_000
    assert np.mean(list(curve.values())) == pytest.approx(values.mean(), abs=1e-3)


def test_worst_cases_come_first(server: RunningServer, other: Path) -> None:
    dice = [0.9, 0.1, 0.5, *[0.95] * 20]
    cases = [
        {"name": f"case {i}", "unit": "mm", "dice": [d, d], "hd95": [1.0, 1.0], "asd": [1.0, 1.0]}
        for i, d in enumerate(dice)
    ]
    (other / "scores_test_plain.json").write_text(json.dumps(cases))
    shown = ask(server, "runs/other")["scores"][0]
    assert (shown["of"], shown["cases"], len(shown["worst"])) == ("test, plain", 23, 10)
    assert [case["name"] for case in shown["worst"][:3]] == ["case 1", "case 2", "case 0"]


# --- Damaged and hostile folders


def bomb() -> str:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 30)]
    return "\n".join([*lines, "data: {classes: *a29}"])


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "log.jsonl",
            LINE + '{"st\n[]\n3\n' + LINE,
            "damaged lines left out: 3, the first is line 2",
        ),
        ("log.jsonl", LINE + "[" * 10**5 + "\n", "left out: 1, the first is line 2"),
        ("log.jsonl", LINE + '{"step": 1' + "0" * 400 + "}\n", "left out: 1, the first is line 2"),
        ("log.jsonl", LINE + '{"step": 11, "x": "y"}\n', "left out: 1, the first is line 2"),
        ("log.jsonl", "x" * (5 << 20) + "\n" + LINE, "5 MiB, only the last 4 MiB are shown"),
        ("config.yaml", "data: {classes: [a", "is damaged or half written"),
        ("config.yaml", bomb(), "is damaged or half written"),
        ("config.yaml", "#" * (1 << 17), "131072 bytes, expected at most 65536"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_and_the_rest_is_shown(
    server: RunningServer, other: Path, file: str, content: str, words: str
) -> None:
    (other / "log.jsonl").write_text(LINE)
    (other / file).write_text(content)
    listed = {run["name"]: run for run in ask(server, "runs")["runs"]}
    assert listed["heart"]["problems"] == []
    problems = listed["other"]["problems"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: ")
    assert words in problems[0]
    assert listed["other"]["best_dice"] == 0.25
    assert ask(server, "runs/other")["problems"] == problems


def test_a_line_that_is_being_written_is_no_damage(server: RunningServer, other: Path) -> None:
    (other / "log.jsonl").write_text(LINE + LINE[:20])
    assert ask(server, "runs/other")["problems"] == []


def test_numbers_that_are_none_are_left_out(server: RunningServer, other: Path) -> None:
    counts = '"assistant/requested": NaN, "assistant/received": 1e999'
    (other / "log.jsonl").write_text(LINE + f'{{"step": 20, "val/dice": Infinity, {counts}}}\n')
    run = ask(server, "runs/other")
    assert (run["step"], run["best_dice"], run["answered"]) == (20, 0.25, None)
    assert curves_of(run)["mean"] == {10: 0.25}
    (other / "scores_val.json").write_text(
        '[{"name": "a", "unit": "mm", "dice": [NaN], "hd95": []}]'
    )
    assert ask(server, "runs/other")["problems"] == ["scores_val.json: is damaged or half written"]


def test_links_and_pipes_are_not_read(server: RunningServer, other: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 7")
    (tmp_path / "gallery.png").write_bytes(SECRET)
    for name in ("config.yaml", "gallery.png"):
        (other / name).unlink(missing_ok=True)
        (other / name).symlink_to(tmp_path / name)
    os.mkfifo(other / "log.jsonl")
    other.with_name("linked").symlink_to(tmp_path)
    try:
        listed = {run["name"]: run for run in ask(server, "runs")["runs"]}
    finally:
        other.with_name("linked").unlink()
    assert sorted(listed) == ["heart", "other"]
    assert listed["other"]["steps"] is None
    assert listed["other"]["problems"] == [
        "config.yaml: is a link, which is not followed",
        "log.jsonl: is no file",
    ]
    answer = httpx.get(f"{server.http}/runs/other/gallery.png")
    assert answer.status_code == 422
    assert "is a link" in answer.json()["error"]["message"]


def test_a_picture_that_is_none_is_refused(
    server: RunningServer, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other / "gallery.png").write_text("<script>")
    assert "damaged" in ask(server, "runs/other/gallery.png", 422)["error"]["message"]
    monkeypatch.setattr(runs, "MAX_PICTURE", 4)
    message = ask(server, "runs/heart/gallery.png", 422)["error"]["message"]
    assert "expected at most 4" in message


@pytest.mark.parametrize(
    "path",
    [
        "runs/none",
        "runs/%2e%2e",
        "runs/..%2fdata",
        "runs/heart%2f..%2fheart",
        "runs/heart/best.png",
        "runs/heart/..%2fgallery.png",
        "runs/heart/config.yaml",
        "runs/heart/tensorboard.png",
    ],
)
def test_only_runs_and_pictures_of_the_listing_are_found(server: RunningServer, path: str) -> None:
    assert ask(server, path, 404)["error"]["code"] == "NOT_FOUND"


def test_any_name_of_a_folder_is_listed_and_found(server: RunningServer, heart: Path) -> None:
    names = [HOSTILE, "a b", "100%", os.fsdecode(b"\xff-run"), "ü?#"]
    folders = [heart.with_name(name) for name in names]
    for folder in folders:
        folder.mkdir()
        (folder / "log.jsonl").write_text(LINE)
    try:
        listed = [run["name"] for run in ask(server, "runs")["runs"]]
        found = [
            httpx.get(httpx.URL(server.http).copy_with(raw_path=_path(name))) for name in listed
        ]
    finally:
        for folder in folders:
            shutil.rmtree(folder)
    assert sorted(listed) == sorted(["heart", HOSTILE, "a b", "100%", "?-run", "ü?#"])
    assert [answer.json()["name"] for answer in found] == listed


def _path(name: str) -> bytes:
    return b"/runs/" + "".join(f"%{byte:02x}" for byte in name.encode()).encode()


def test_the_newest_runs_are_listed(
    server: RunningServer, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(other / "config.yaml", (10**9, 10**9))
    assert [run["name"] for run in ask(server, "runs")["runs"]] == ["heart", "other"]
    monkeypatch.setattr(runs, "MAX_RUNS", 1)
    listed = ask(server, "runs")
    assert ([run["name"] for run in listed["runs"]], listed["count"]) == (["heart"], 2)
    assert ask(server, "runs/other")["name"] == "other"


# --- Setting and token


def test_a_token_holds_for_runs_and_an_unset_folder_is_said(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="secret") as server:
        for path in ("runs", "runs/heart", "runs/heart/gallery.png"):
            assert ask(server, path, 401)["error"]["field"] == "authorization"
        token = {"Authorization": "Bearer secret"}
        listed = httpx.get(f"{server.http}/runs", headers=token).json()
        assert listed == {"folder": None, "runs": [], "count": 0}
        one = httpx.get(f"{server.http}/runs/heart", headers=token)
        assert one.status_code == 404
        assert "--runs DIR or VESSA_RUNS_DIR" in one.json()["error"]["message"]


def test_the_folder_of_runs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSA_RUNS_DIR", str(tmp_path / "none"))
    with pytest.raises(ValidationError, match="is no folder, expected one of training runs"):
        ServerSettings()
    monkeypatch.setenv("VESSA_RUNS_DIR", "")
    assert ServerSettings().runs_dir is None


# --- The page


def opened(page: Page, run: str = "heart") -> None:
    page.value(f"location.hash = '#training/{run}'")
    page.until(f"document.querySelector('#run-name').textContent === '{run}'")
    page.until("document.querySelectorAll('.plot path').length > 1")


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_a_run(page: Page, heart: Path, width: int, scheme: str) -> None:
    page.size(width, 860)
    page.scheme(scheme)
    opened(page)
    assert "6 of 6" in page.text("#runs tbody tr")
    assert "finished" in page.text("#runs tbody tr")
    assert "disc, bar" in page.text("#told")
    assert "p3_frame01" in page.text("#scores")
    page.value("document.querySelector('#run-pictures img').scrollIntoView()")
    page.until("document.querySelector('#run-pictures img').naturalWidth > 100")
    assert page.value("document.querySelectorAll('.chart:not([hidden])').length") == 3
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    drawn = page.value("getComputedStyle(document.querySelector('.plot path')).stroke")
    ground = page.value("getComputedStyle(document.body).backgroundColor")
    assert _contrast(drawn, ground) > 3


def _contrast(one: str, other: str) -> float:
    """Of two colours such as ``rgb(11, 92, 173)``, as WCAG has it."""
    lights = []
    for colour in (one, other):
        values = [int(v) / 255 for v in colour[4:-1].split(",")]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        lights.append(
            math.fsum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        )
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@in_browser
def test_values_are_read_by_pointer_and_keys(page: Page, heart: Path) -> None:
    first, last = [json.loads(line) for line in (heart / "log.jsonl").read_text().splitlines()]
    opened(page)
    said = "document.querySelector('.readout').textContent"
    assert page.value(said).startswith(f"Update 6: supervised {last['loss/supervised']:.3f}")
    left, top, width = page.value("""(() => { const plot = document.querySelector('.plot');
        plot.scrollIntoView({block: 'center'});
        const r = plot.getBoundingClientRect(); return [r.left, r.top, r.width]; })()""")
    page.mouse("mouseMoved", left + width * 0.5, top + 100)
    page.until(f"{said}.startsWith('Update 3: supervised {first['loss/supervised']:.3f}')")
    assert page.value("document.querySelectorAll('.plot .cursor').length") == 1
    page.mouse("mouseMoved", left + width * 0.5, top - 400)
    page.until(f"{said}.startsWith('Update 6')")
    page.value("document.querySelector('.plot').focus()")
    page.key("ArrowLeft")
    page.until(f"{said}.startsWith('Update 3')")
    page.key("End")
    page.until(f"{said}.startsWith('Update 6')")


@in_browser
def test_a_run_that_goes_on_is_shown_anew(page: Page, other: Path) -> None:
    config = yaml.safe_load((other / "config.yaml").read_text()) | {"steps": 40}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "log.jsonl").write_text(LINE)
    opened(page, "other")
    assert "not finished, goes on" in page.text("#runs")
    with (other / "log.jsonl").open("a") as stream:
        stream.write(LINE.replace("10", "20") + "\n")
    page.until("document.querySelector('#runs').textContent.includes('20 of 40')")
    page.until("document.querySelector('.readout').textContent.startsWith('Update 20')")
    page.until("document.querySelector('#run-problems').textContent.includes('is line 3')")


@in_browser
def test_names_in_runs_are_text(page: Page, other: Path) -> None:
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["classes"] = [HOSTILE]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "log.jsonl").write_text(LINE.replace("val/dice", f"val/dice/{HOSTILE}"))
    opened(page, "other")
    assert HOSTILE in page.text("#told")
    assert HOSTILE in page.text("#charts")
    assert page.value("document.querySelectorAll('img[onerror]').length") == 0


@in_browser
def test_without_a_folder_the_view_says_how_and_that_the_server_went(
    browser: Browser, tmp_path: Path
) -> None:
    page = Page(browser)
    with running(engine_of(tmp_path)) as server:
        page.go(f"{server.http}/#training")
        page.until("document.querySelector('#runs-text').textContent.includes('--runs DIR')")
        assert page.value("document.querySelector('#run').hidden")
    page.until("document.querySelector('#errors').textContent.includes('does not answer')")
    page.until("document.querySelector('#server').textContent === 'Server does not answer'")
    page.close()
