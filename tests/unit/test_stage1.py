"""Stage 1 training: episodes, corruption, losses, and resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from support import tiny_config, tiny_model
from vessa_server.model import checkpoint, prompts
from vessa_server.model.vessa import Conditioned
from vessa_server.training import lora
from vessa_server.training.config import ConfigError, FineTuningConfig, TrainingConfig
from vessa_server.training.corruption import corrupt
from vessa_server.training.episodes import Episode, EpisodeDataset
from vessa_server.training.losses import hard_dice, hard_iou, mask_loss, soft_dice_loss
from vessa_server.training.objective import _misled, _prefix, choose_templates
from vessa_server.training.scenes import FAMILIES, MAX_REGIONS, TEXTS, Scene
from vessa_server.training.synthetic import SyntheticSource
from vessa_server.training.trainer import Stage1Trainer, learning_rate

CONFIG = TrainingConfig(
    steps=4,
    groups=2,
    images_per_group=3,
    max_templates=2,
    warmup_steps=1,
    image_every=2,
    log_every=1,
    distractor_probability=0.0,
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
        broken.train_step([broken.dataset[step]])
    broken.save()
    broken.train_step([broken.dataset[2]])  # work that is lost
    resumed = Stage1Trainer(tiny_model(seed=9), _dataset(), tmp_path / "b")
    resumed.run()
    expected, found = _state(unbroken), _state(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (tmp_path / "b" / "model.safetensors").is_file()


def test_training_lowers_the_loss_on_a_repeated_episode(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=40, learning_rate=3e-3, retrieval_probability=0)
    trainer = Stage1Trainer(tiny_model(), _dataset(config), tmp_path)
    episode = trainer.dataset[0]
    losses = [trainer.train_step([episode]).scalars["loss/total"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_answers_name_size_and_place() -> None:
    mask = np.zeros((90, 90), dtype=bool)
    assert prompts.answer(mask) == " absent"
    mask[:20, 70:] = True
    assert prompts.answer(mask) == " medium at top right"


def test_the_shipped_weights_load_and_see(tmp_path: Path) -> None:
    from vessa_server.model import checkpoint
    from vessa_server.model.presets import preset
    from vessa_server.serving.settings import SHIPPED_WEIGHTS

    model = checkpoint.load(preset("nano"), SHIPPED_WEIGHTS / "nano")
    with torch.no_grad():
        features = model.encode_image(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))
    assert features.top_BDHW.shape == (1, 128, 8, 8)
    norms = torch.linalg.vector_norm(features.match_BDHW, dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4)


def test_where_only_the_text_decides_templates_show_all_structures() -> None:
    config = dataclasses.replace(CONFIG, text_decides=1.0)
    several = 0
    for step in range(12):
        episode = _dataset(config)[step]
        for row in range(len(episode.prompts)):
            if int(episode.shown_PV[row].sum()) < 2:
                continue
            several += 1
            assert bool(episode.shown_PV[row, episode.class_P[row]])
            template = int(torch.nonzero(episode.candidates_PN[row])[0])
            one = dataclasses.replace(
                episode,
                image_P=episode.image_P[row : row + 1],
                class_P=episode.class_P[row : row + 1],
                shown_PV=episode.shown_PV[row : row + 1],
            )
            shown = one.shown_masks(torch.tensor([template]))[0, 0]
            expected = episode.labels_NHW[template] > 0
            values = torch.nonzero(episode.shown_PV[row]).flatten()
            expected = torch.isin(episode.labels_NHW[template], values.to(torch.uint8))
            assert torch.equal(shown > 0, expected)
    assert several > 10


def test_distractors_are_of_another_task() -> None:
    config = dataclasses.replace(CONFIG, distractor_probability=1.0, retrieval_probability=0)
    episode = _dataset(config)[1]
    features = tiny_model().encode_image(episode.image_N3HW, episode.image_N3HW)
    groups = episode.group_N[episode.image_P]
    several = 0
    for seed in range(10):
        torch.manual_seed(seed)
        chosen = choose_templates(features, episode, config)
        assert bool((episode.group_N[chosen[:, 0]] == groups).all())
        if chosen.shape[1] > 1:
            several += 1
            assert bool((episode.group_N[chosen[:, -1]] != groups).all())
    assert several


def test_synthetic_cavities_lie_inside_their_rings() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(60):
        images, texts = SyntheticSource().sample(rng, 2)
        names = [text.name for text in texts]
        if not {"ring", "cavity"} <= set(names):
            continue
        seen += 1
        for item in images:
            assert item.image.shape == item.labels.shape
            ring, cavity = (item.labels == names.index(n) + 1 for n in ("ring", "cavity"))
            if not (ring.any() and cavity.any()):
                continue
            row, column = (int(v.mean()) for v in np.nonzero(cavity))
            rows, columns = np.nonzero(ring | cavity)
            assert rows.min() <= row <= rows.max()
            assert columns.min() <= column <= columns.max()
    assert seen > 5


def test_held_out_scores_do_not_change_the_run(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, validate_every=1, validation_batches=2)
    trainers = []
    for name, held_out in (("a", None), ("b", _dataset(config))):
        trainer = Stage1Trainer(tiny_model(), _dataset(config), tmp_path / name, held_out=held_out)
        trainer.run()
        trainers.append(trainer)
    first, second = (_state(t) for t in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert sum("val/dice/one_shot" in line for line in lines) == 4
    assert (tmp_path / "b" / "first_batch.png").is_file()


def test_a_run_does_not_go_on_with_another_configuration(tmp_path: Path) -> None:
    trainer = Stage1Trainer(tiny_model(), _dataset(), tmp_path, identity="a")
    trainer.train_step([trainer.dataset[0]])
    trainer.save()
    other = Stage1Trainer(tiny_model(), _dataset(), tmp_path, identity="b")
    with pytest.raises(ConfigError, match="another configuration"):
        other.resume()


def test_bf16_computes_nearly_the_same(tmp_path: Path) -> None:
    totals = []
    for precision in ("fp32", "bf16"):
        config = dataclasses.replace(CONFIG, precision=precision)
        trainer = Stage1Trainer(tiny_model(), _dataset(config), tmp_path)
        totals.append(trainer.train_step([trainer.dataset[0]]).scalars["loss/total"])
    assert totals[0] != totals[1]
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


def test_a_frozen_encoder_stays_and_a_slow_one_moves_less(tmp_path: Path) -> None:
    moved = {}
    for rate in (0.0, 0.1, 1.0):
        trainer = Stage1Trainer(tiny_model(), _dataset(), tmp_path, encoder_rate=rate)
        before = {n: p.clone() for n, p in trainer.model.image_encoder.named_parameters()}
        trainer.train_step([trainer.dataset[0]])
        after = dict(trainer.model.image_encoder.named_parameters())
        moved[rate] = max(float((after[n] - before[n]).detach().abs().max()) for n in before)
    assert moved[0.0] == 0.0
    assert moved[0.1] == pytest.approx(0.1 * moved[1.0], rel=0.05)


def test_lora_trains_adapters_only_and_stores_a_plain_model(tmp_path: Path) -> None:
    model = tiny_model()
    before = {n: p.clone() for n, p in model.reasoner.vlm.named_parameters()}
    handle = lora.inject(model, FineTuningConfig(lora_rank=2, lora_alpha=64))
    trainer = Stage1Trainer(
        model, _dataset(), tmp_path, export=lambda trained: lora.merged(trained, handle)
    )
    for step in range(3):
        trainer.train_step([trainer.dataset[step]])
    trainer.use_average()
    trainer.average = {n: p.detach().clone() for n, p in trainer._trained()}
    trainer.save()
    trained = {n for n, p in model.reasoner.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    plain = checkpoint.load(tiny_config(), tmp_path)
    stored = dict(plain.reasoner.vlm.named_parameters())
    assert stored.keys() == before.keys()
    changed = {n for n in before if not torch.allclose(before[n], stored[n], atol=2e-3)}
    assert all("language_model" in name for name in changed)
    episode = trainer.dataset[0]
    with torch.no_grad():
        ids, mask = model.reasoner.tokenize(episode.prompts[:1])
        view = model.reasoner.see(episode.image_N3HW[:1])
        seen = [m.reasoner.prefix(ids, mask, view).keys_PLGTD for m in (model, plain)]
    assert torch.allclose(seen[0], seen[1], atol=1e-2)


@torch.no_grad()
def test_pairs_that_share_text_and_template_share_their_prefix() -> None:
    model = tiny_model()
    texts = ["the disc", "a rather longer text", "the disc", "the disc"]
    first = torch.tensor([1, 0, 1, 0])
    views = model.reasoner.see(torch.rand(2, 3, 64, 64))
    shared = _prefix(model, texts, views, first)
    target = model.reasoner.see(torch.rand(4, 3, 64, 64))
    found = model.reasoner.read(shared, target).seg_PD
    ids, mask = model.reasoner.tokenize(texts)
    each = model.reasoner.prefix(ids, mask, views.select(first))
    assert torch.allclose(found, model.reasoner.read(each, target).seg_PD, atol=1e-5)
    assert torch.equal(shared.keys_PLGTD[0], shared.keys_PLGTD[2])
    assert shared.mask_PT.shape[1] < each.mask_PT.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_scenes_draw_known_regions_and_annotate_what_they_can_show(family: str) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = Scene(rng, family)
        values, texts = scene.annotated(rng)
        assert len(values) == len(set(values)) == len(texts)
        drawn = [scene.draw(rng) for _ in range(40)]
        assert all(regions.max() < MAX_REGIONS for regions in drawn)
        for value in values:
            assert any(bool((regions == value).any()) for regions in drawn), (seed, value)


def test_names_that_mean_nothing_leave_the_colour_to_decide() -> None:
    config = dataclasses.replace(CONFIG, renamed=1.0, text_decides=1.0)
    own = [text.name for text in TEXTS]
    with_colour = without_colour = 0
    for step in range(12):
        for text in _dataset(config)[step].prompts:
            named = any(f"Segment {name}." in text or f"Segment {name}," in text for name in own)
            if " area of another image" in text:
                with_colour += 1
                assert not named, text
            else:
                without_colour += 1
                assert named, text
    assert with_colour
    assert without_colour


def test_the_vlm_misleads_only_where_the_template_tells() -> None:
    pairs = 6
    pair_P11 = torch.arange(1.0, pairs + 1)[:, None, None]
    conditioned = Conditioned(
        top_PDHW=torch.zeros(pairs, 1, 1, 1),
        prior_P1HW=torch.zeros(pairs, 1, 1, 1),
        points_PN2=torch.zeros(pairs, 1, 2),
        labels_PN=torch.zeros(pairs, 1),
        seg_P1D=pair_P11,
        seg_map_P1HW=pair_P11[..., None],
    )
    shown = torch.zeros(pairs, 4, dtype=torch.bool)
    shown[:, 1] = True
    shown[3:, 2] = True
    episode = dataclasses.replace(_dataset()[0], image_P=torch.zeros(pairs), shown_PV=shown)
    always = dataclasses.replace(CONFIG, seg_dropout=0.0, seg_distractor_probability=1.0)
    moved = 0
    for seed in range(10):
        torch.manual_seed(seed)
        heard = _misled(conditioned, episode, always)
        assert torch.equal(heard.seg_P1D.flatten(), heard.seg_map_P1HW.flatten())
        assert torch.equal(heard.seg_P1D[3:], conditioned.seg_P1D[3:])
        moved += int((heard.seg_P1D[:3] != conditioned.seg_P1D[:3]).sum())
    assert moved > 15
    silent = _misled(conditioned, episode, dataclasses.replace(CONFIG, seg_dropout=1.0))
    assert not silent.seg_P1D.any()
    assert not silent.seg_map_P1HW.any()
