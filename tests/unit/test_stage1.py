"""Stage 1 training: episodes, corruption, losses, and resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from support import tiny_model
from vessa_server.model import prompts
from vessa_server.training.config import TrainingConfig
from vessa_server.training.corruption import corrupt
from vessa_server.training.episodes import Episode, EpisodeDataset
from vessa_server.training.losses import hard_dice, hard_iou, mask_loss, soft_dice_loss
from vessa_server.training.sources import ClassText, FolderSource, SourceSpec
from vessa_server.training.synthetic import SyntheticSource
from vessa_server.training.trainer import Stage1Trainer, choose_templates, learning_rate

CONFIG = TrainingConfig(
    steps=4, groups=2, images_per_group=3, warmup_steps=1, image_every=2, log_every=1
)


def _dataset(config: TrainingConfig = CONFIG) -> EpisodeDataset:
    return EpisodeDataset([(SyntheticSource(), 1.0)], config, 64)


def _equal(one: Episode, other: Episode) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in (
            (getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Episode)
        )
    )


def test_an_episode_depends_on_seed_and_step_only() -> None:
    assert _equal(_dataset()[3], _dataset()[3])
    assert not _equal(_dataset()[3], _dataset()[2])
    assert not _equal(_dataset()[3], _dataset(dataclasses.replace(CONFIG, seed=1))[3])


def test_templates_show_the_class_and_are_other_images_of_the_group() -> None:
    for step in range(8):
        episode = _dataset()[step]
        assert bool(((episode.image_N3HW >= 0) & (episode.image_N3HW <= 1)).all())
        for row, image in enumerate(episode.image_P.tolist()):
            candidates = torch.nonzero(episode.candidates_PN[row]).flatten().tolist()
            assert image not in candidates
            assert {c // 3 for c in candidates} == {image // 3}
            for candidate in candidates:
                shown = episode.labels_NHW[candidate] == episode.class_P[row]
                assert int(shown.sum()) >= 16


def test_chosen_templates_are_candidates(model: object) -> None:
    episode = _dataset()[1]
    features = tiny_model().encode_image(episode.image_N3HW, episode.image_N3HW)
    for seed in range(6):
        torch.manual_seed(seed)
        chosen = choose_templates(features, episode, CONFIG)
        assert bool(episode.candidates_PN.gather(1, chosen).all())


def test_corruption_covers_the_whole_range_of_quality() -> None:
    mask, other = torch.zeros(64, 64), torch.zeros(64, 64)
    mask[20:44, 16:40] = 1
    other[10:20, 16:40] = 1
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(300):
        student = corrupt(mask, other, rng)
        assert student.shape == mask.shape
        assert bool(((student >= 0) & (student <= 1)).all())
        logits, target = student[None, None] - 0.5, mask[None, None]
        scores.append(float(hard_dice(logits, target)))
    quantiles = np.quantile(scores, [0.1, 0.5, 0.9])
    assert quantiles[0] < 0.3
    assert 0.4 < quantiles[1] < 0.95
    assert quantiles[2] > 0.85


def test_losses_are_those_of_a_plain_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, 4, generator=generator)
    target = (torch.rand(3, 1, 5, 4, generator=generator) > 0.6).float()
    target[2] = 0
    dices, entropies = [], []
    for pair in range(3):
        p = 1 / (1 + np.exp(-logits[pair, 0].numpy().astype(np.float64)))
        t = target[pair, 0].numpy()
        dices.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        entropies.append(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
        a, b = logits[pair, 0].numpy() > 0, t > 0.5
        union = (a | b).sum()
        iou = (a & b).sum() / union if union else 1.0
        assert float(hard_iou(logits, target)[pair]) == pytest.approx(iou)
        total = a.sum() + b.sum()
        dice = 2 * (a & b).sum() / total if total else 1.0
        assert float(hard_dice(logits, target)[pair]) == pytest.approx(dice, abs=1e-6)
    found = soft_dice_loss(torch.sigmoid(logits), target)
    assert found.tolist() == pytest.approx(dices, abs=1e-5)
    expected = np.mean(entropies) + np.mean(dices)
    assert float(mask_loss(logits, target)) == pytest.approx(expected, abs=1e-5)


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.05 * config.learning_rate


def _state(trainer: Stage1Trainer) -> dict[str, torch.Tensor]:
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    return weights | {f"average.{n}": t.clone() for n, t in trainer.average.items()}


def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path: Path) -> None:
    unbroken = Stage1Trainer(tiny_model(), _dataset(), tmp_path / "a")
    unbroken.run()
    assert unbroken.step == 4
    broken = Stage1Trainer(tiny_model(), _dataset(), tmp_path / "b")
    broken.out.mkdir()
    for step in range(2):
        broken.train_step(broken.dataset[step])
    broken.save()
    broken.train_step(broken.dataset[2])  # work that is lost
    resumed = Stage1Trainer(tiny_model(seed=9), _dataset(), tmp_path / "b")
    resumed.run()
    expected, found = _state(unbroken), _state(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (tmp_path / "b" / "model.safetensors").is_file()


def test_training_lowers_the_loss_on_a_repeated_episode(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=40, learning_rate=3e-3, retrieval_probability=0)
    trainer = Stage1Trainer(tiny_model(), _dataset(config), tmp_path)
    episode = trainer.dataset[0]
    losses = [trainer.train_step(episode).scalars["loss/total"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_answers_name_size_and_place() -> None:
    mask = np.zeros((90, 90), dtype=bool)
    assert prompts.answer(mask) == " absent"
    mask[:20, 70:] = True
    assert prompts.answer(mask) == " medium at top right"


def test_folders_of_pictures_and_volumes_are_sources(tmp_path: Path) -> None:
    import nibabel as nib
    from PIL import Image

    (tmp_path / "p" / "train").mkdir(parents=True)
    (tmp_path / "v" / "train").mkdir(parents=True)
    for index in range(3):
        label = np.zeros((20, 30), np.uint8)
        label[5:12, 4:20] = 255
        Image.fromarray(label // 2).save(tmp_path / "p" / "train" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "p" / "train" / f"{index}_gt.png")
        volume = np.repeat((label > 0).astype(np.uint8)[..., None], 6, axis=2)
        for name, array in ((f"{index}", volume * 90), (f"{index}_gt", volume)):
            file = tmp_path / "v" / "train" / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image(array, np.eye(4)), file)
    rng = np.random.default_rng(0)
    for folder, binary in (("p", True), ("v", False)):
        spec = SourceSpec(folder=folder, classes=(ClassText(name="x"),), binary=binary)
        items, texts = FolderSource(spec, tmp_path).sample(rng, 2)
        assert [t.name for t in texts] == ["x"]
        assert all(i.image.shape == i.labels.shape == (20, 30) for i in items)
        assert {int(v) for i in items for v in np.unique(i.labels)} <= {0, 1}
    missing = SourceSpec(folder="nothing", classes=(ClassText(name="x"),))
    with pytest.raises(FileNotFoundError, match="nothing"):
        FolderSource(missing, tmp_path)


def test_the_shipped_weights_load_and_see(tmp_path: Path) -> None:
    from vessa_server.model import checkpoint
    from vessa_server.model.presets import preset
    from vessa_server.serving.settings import SHIPPED_WEIGHTS

    model = checkpoint.load(preset("nano"), SHIPPED_WEIGHTS / "nano")
    with torch.no_grad():
        features = model.encode_image(torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 128, 128))
    assert features.top_BDHW.shape == (1, 128, 16, 16)
    norms = torch.linalg.vector_norm(features.match_BDHW, dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4)
