"""A training puts its annotated slices into a bank of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from ssl_trainer.assistant import own_bank
from ssl_trainer.cli import app
from ssl_trainer.config import ConfigError, TrainConfig, load, to_dict
from ssl_trainer.data.cases import find, sliced
from ssl_trainer.data.slices import read_slices
from ssl_trainer.training.trainer import Trainer
from support import RunningServer, engine_of, free_port, running
from trainer_support import AFFINE, small_config, write_case, write_dataset
from vessa_client import VessaClient, files
from vessa_client.windows import AUTOMATIC
from vessa_server.model.intensity import unit_range


def written(config: TrainConfig, file: Path) -> Path:
    file.write_text(yaml.safe_dump(to_dict(config)))
    return file


def train(file: Path, out: Path, *more: str, token: str | None = None) -> Result:
    command = ["train", str(file), "-o", str(out), "--threads", "1", *more]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200", "VESSA_TOKEN": token})


def test_one_command_fills_a_bank_trains_with_it_and_goes_on(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "My Hearts")
    file = written(small_config(root, steps=3), tmp_path / "config.yaml")
    with running(engine_of(tmp_path / "s", templates=0), token="right") as server:
        asked = ("--server", server.grpc, "--fill-bank")
        result = train(file, tmp_path / "run", *asked, token="right")
        assert result.exit_code == 0, result.output
        name = load(tmp_path / "run" / "config.yaml").assistant.bank
        assert name.startswith("my-hearts-")
        assert f"Bank {name}: 3 added, 0 there already." in result.output
        text = (tmp_path / "run" / "report.md").read_text()
        assert f"at {server.grpc}, bank {name}, answered 100 % of" in text

        banks = server.engine.banks
        assert banks.names() == (name,)
        listing = banks.get(name).snapshot()
        assert [t.name for t in listing.templates] == [f"p0_frame01/{z}" for z in range(3)]
        assert [c.name for c in listing.classes] == ["disc", "bar"]
        # A run goes on with its bank only.
        assert train(file, tmp_path / "run", *asked, token="right").exit_code == 0
        result = train(file, tmp_path / "run", "--server", server.grpc, token="right")
        assert result.exit_code == 1
        assert "assistant.bank" in result.stderr
        # Its own configuration names it.
        named = f"assistant.bank={name}"
        more = ("--server", server.grpc, "--set", named)
        assert train(file, tmp_path / "run", *more, token="right").exit_code == 0
        # Another run of the same slices shares the bank, wherever they lie.
        (tmp_path / "elsewhere").mkdir()
        root.symlink_to(root.rename(tmp_path / "elsewhere" / "My Hearts"))
        result = train(file, tmp_path / "other", *asked, token="right")
        assert f"Bank {name}: 0 added, 3 there already." in result.output
        assert load(tmp_path / "other" / "config.yaml").assistant.bank == name


def test_a_named_bank_is_filled_and_other_data_get_another(
    tmp_path: Path, server: RunningServer
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    chosen = own_bank.templates(config)
    first = own_bank.named(config, chosen).assistant.bank
    assert own_bank.named(config, chosen[1:]).assistant.bank != first
    renamed = dataclasses.replace(config.data, classes=("ball", "bar"))
    assert own_bank.named(dataclasses.replace(config, data=renamed), chosen).assistant.bank != first
    assistant = dataclasses.replace(config.assistant, bank="shared")
    config = own_bank.named(dataclasses.replace(config, assistant=assistant), chosen)
    assert own_bank.fill(config, chosen, lambda: None) == 3
    assert own_bank.fill(config, chosen, lambda: None) == 0
    with VessaClient(server.grpc) as client:
        assert len(client.list_templates(bank="shared").templates) == 3


def test_names_of_folders_make_names_of_banks(tmp_path: Path, server: RunningServer) -> None:
    for folder in ("Herz: Übung (2)", "心臓", "x" * 200, "..hidden", "data"):
        config = small_config(write_dataset(tmp_path / folder), server=server.grpc)
        chosen = own_bank.templates(config)
        named = own_bank.named(config, chosen)
        assert own_bank.fill(named, chosen, lambda: None) == 3, "a name that the server takes"


def test_many_slices_are_spread_and_rare_structures_are_among_them(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    labels = np.zeros((20, 20, 200), np.uint8)
    labels[5:9, 5:9, 20:180] = 1
    labels[12, 12, 33] = 2  # not a slice that would be picked
    labels[12, 12:14, 34] = 2
    for suffix, volume in (("", 9 * labels + 1), ("_gt", labels)):
        nib.save(nib.Nifti1Image(volume, AFFINE), root / "train" / f"p0_frame01{suffix}.nii.gz")
    config = small_config(root)
    chosen = own_bank.templates(config)
    places = [int(item.key.rpartition("/")[2]) for item in chosen]
    assert len(places) == 33
    assert places[-1] == 34, "the slice that shows most of it"
    assert set(np.diff(places[:-1])) == {5}
    assert all(item.labels is not None and item.labels.any() for item in chosen)


def test_templates_are_the_slices_that_the_run_trains_on(tmp_path: Path) -> None:
    """One of three labelled volumes was acquired along another axis; a run slices all alike."""
    root = write_dataset(tmp_path / "data")
    labels = np.zeros((6, 40, 44), np.uint8)
    labels[1:5, 10:20, 10:20] = 1
    labels[2:4, 25:30, 10:20] = 2
    affine = np.diag([8.0, 1.5, 1.5, 1])
    for suffix, volume in (("", 9 * labels + 1), ("_gt", labels)):
        nib.save(nib.Nifti1Image(volume, affine), root / "train" / f"p8_frame01{suffix}.nii.gz")
    write_case(root / "train", "p9_frame01", 9, labelled=True)
    config = small_config(root)
    data = dataclasses.replace(config.data, labelled=("p0", "p8", "p9"))
    config = dataclasses.replace(config, data=data)
    trained = {s.key: s for s in Trainer(config, tmp_path / "run").labelled}
    chosen = own_bank.templates(config)
    assert {item.key.partition("/")[0] for item in chosen} == {f"p{i}_frame01" for i in (0, 8, 9)}
    for item in chosen:
        assert np.array_equal(item.image, trained[item.key].image)
        learned = trained[item.key].labels
        assert item.labels is not None
        assert learned is not None
        assert np.array_equal(item.labels, learned)


def test_the_bank_of_a_run_with_a_window_serves_scans_in_their_own_unit(
    tmp_path: Path, server: RunningServer
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    plain = own_bank.named(config, own_bank.templates(config)).assistant.bank
    window = (-160.0, 240.0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, window=window))
    scan = files.read(config.data.root / "train" / "p0_frame01.nii.gz")
    chosen = own_bank.templates(config)
    for item in chosen:
        assert np.array_equal(item.image, scan.slice(int(item.key.rpartition("/")[2])))
    config = own_bank.named(config, chosen)
    assert config.assistant.bank != plain
    own_bank.fill(config, chosen, lambda: None)
    with VessaClient(server.grpc) as client:
        held = client.list_templates(bank=config.assistant.bank).templates
    assert {t.window for t in held} == {window}
    ct = files.ImageFile(Path("ct.nii"), np.arange(-1000, 1000).reshape(10, 10, 20), 2, None)
    assert AUTOMATIC.of(ct, held).window == window
    # What the run sends of its slices is of 8 bits, and looks the same.
    split = find(config.data)
    labelled = split.read_as(sliced(config.data, split)).labelled
    sent = {s.key: s for s in read_slices(labelled, 2, labelled=True)}
    for item in chosen:
        own = sent[item.key]
        assert own.image.dtype == np.uint8
        shown = unit_range(own.image, own.window)
        assert np.allclose(shown, unit_range(item.image, window), atol=0.5 / 255 + 1e-6)


def test_errors_say_what_to_do(tmp_path: Path, server: RunningServer) -> None:
    root = write_dataset(tmp_path / "data")
    file = written(small_config(root), tmp_path / "config.yaml")
    result = train(file, tmp_path / "run", "--fill-bank")
    assert result.exit_code == 1
    assert "--server HOST:PORT" in result.stderr
    gone = f"127.0.0.1:{free_port()}"
    more = ("--fill-bank", "--set", "assistant.wait_seconds=0", "--server")
    result = train(file, tmp_path / "run", *more, gone)
    assert result.exit_code == 1
    assert "does not answer" in result.stderr
    assert "`vessa-server serve`" in result.stderr
    result = train(file, tmp_path / "run", "--set", "assistant.bank=HEART", *more, server.grpc)
    assert result.exit_code == 1
    assert "'HEART'" in result.stderr
    write_case(root / "train", "p5_frame01", 5, labelled=True)
    config = small_config(root)
    three = dataclasses.replace(config.data, classes=("disc", "bar", "rod"))
    with pytest.raises(ConfigError, match=r"data\.labelled: no annotated slice shows 'rod'"):
        own_bank.templates(dataclasses.replace(config, data=three))
