"""Stage 1 training: losses, schedule, resuming, and what is done with numbers that are none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support import SAMPLE, tiny_config, tiny_model
from support_syncs import counted_ops
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.matching.template_matcher import TemplateMatcher
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Conditioned
from vessa_server.training import lora, run, sources
from vessa_server.training import pack as packs
from vessa_server.training.config import (
    ConfigError,
    FineTuningConfig,
    SourceConfig,
    Stage1Config,
    TrainingConfig,
)
from vessa_server.training.episodes import EpisodeGenerator
from vessa_server.training.losses import hard_dice, hard_iou, mask_loss, soft_dice_loss
from vessa_server.training.objective import _misled, choose_templates
from vessa_server.training.pack import PackedSource
from vessa_server.training.report import Report
from vessa_server.training.schedule import LAST, Schedule
from vessa_server.training.tasks import ClassText, PackedSlice
from vessa_server.training.trainer import (
    BAD_BATCH_FILE,
    STATE_FILE,
    NotFiniteError,
    Stage1Trainer,
    Start,
)

CONFIG = TrainingConfig(
    steps=4,
    groups=2,
    images_per_group=3,
    max_templates=2,
    warmup_steps=1,
    image_every=2,
    log_every=1,
    distractor_probability=0.0,
    precision="fp32",
)
READING = dataclasses.replace(CONFIG, text_share=1.0)


def _generator(config: TrainingConfig = CONFIG) -> EpisodeGenerator:
    return EpisodeGenerator(None, config, 64)


def _trainer(out: Path, config: TrainingConfig = CONFIG, seed: int = 0) -> Stage1Trainer:
    return Stage1Trainer(tiny_model(seed), _generator(config), out)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_chosen_templates_are_candidates(probability: float) -> None:
    config = dataclasses.replace(CONFIG, retrieval_probability=probability)
    model = tiny_model()
    for number in range(6):
        episode = _generator(config)[number]
        assert episode.retrieves == bool(probability)
        features = model.encode_image(episode.image_N3HW, None)
        remembered = model.encode_template(features.select(episode.image_P), episode.shown_masks())
        chosen = choose_templates(features, remembered, episode, config)
        assert chosen.shape[1] == episode.templates
        members = episode.candidates_PM.shape[1]
        for pair, row in enumerate(chosen.tolist()):
            if not episode.weight_P[pair]:
                continue
            for template in row:
                assert template // members == pair // members
                assert episode.candidates_PM[pair, template % members]


@torch.no_grad()
def test_scores_of_pairs_are_the_scores_of_all_with_all() -> None:
    torch.manual_seed(0)
    query = torch.nn.functional.normalize(torch.randn(6, 8, 16, 16), dim=1)
    embedding = torch.nn.functional.normalize(torch.randn(6, 2, 8), dim=2)
    other = torch.randint(0, 6, (6, 3))
    pairs = TemplateMatcher.retrieval_scores_of_pairs(query, embedding[other])
    every = TemplateMatcher.retrieval_scores(query, embedding)
    assert torch.allclose(pairs, every.gather(1, other), atol=1e-6)


def test_distractors_are_of_another_task() -> None:
    config = dataclasses.replace(CONFIG, distractor_probability=1.0)
    model, several = tiny_model(), 0
    for number in range(8):
        episode = _generator(config)[number]
        features = model.encode_image(episode.image_N3HW, None)
        remembered = model.encode_template(features.select(episode.image_P), episode.shown_masks())
        chosen = choose_templates(features, remembered, episode, config)
        row_P = torch.arange(len(chosen)) // 3
        assert bool((chosen[:, 0] // 3 == row_P).all())
        if episode.templates > 1:
            several += 1
            assert bool((chosen[:, -1] // 3 != row_P).all())
    assert several


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
    weight = torch.tensor([1.0, 0.0, 1.0])
    found = soft_dice_loss(torch.sigmoid(logits), target)
    assert found.tolist() == pytest.approx(dices, abs=1e-5)
    expected = np.mean([entropies[0] + dices[0], entropies[2] + dices[2]])
    assert float(mask_loss(logits, target, weight)) == pytest.approx(expected, abs=1e-5)
    assert float(mask_loss(logits, target, 0 * weight)) == 0


def test_learning_rate_warms_up_stays_and_falls() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, decay_share=0.2)
    rates = [Schedule(config, step=step).rate for step in range(100)]
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert rates[9:80] == [pytest.approx(config.learning_rate)] * 71
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[-1] < (LAST + 0.06) * config.learning_rate
    going_on = dataclasses.replace(config, decay_share=0.0)
    assert Schedule(going_on, step=99).rate == config.learning_rate


def test_a_run_can_end_by_the_clock() -> None:
    config = TrainingConfig(minutes=2, warmup_steps=0, decay_share=0.5)
    assert Schedule(config, seconds=59).rate == config.learning_rate
    assert Schedule(config, seconds=90).rate < 0.52 * config.learning_rate
    assert not Schedule(config, seconds=119).over
    assert Schedule(config, seconds=120).over
    with pytest.raises(ValueError, match="expected one of them above 0"):
        TrainingConfig()


def _state(trainer: Stage1Trainer) -> dict[str, torch.Tensor]:
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    return weights | {f"average.{n}": t.clone() for n, t in trainer.average.items()}


def _step(trainer: Stage1Trainer) -> dict[str, float]:
    episodes = [trainer.generator[n] for n in trainer._numbers_of(trainer.step)]
    return {n: float(v) for n, v in trainer.train_step(episodes).scalars.items()}


def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, text_share=0.5)
    unbroken = _trainer(tmp_path / "a", config)
    unbroken.run()
    assert unbroken.step == 4
    broken = _trainer(tmp_path / "b", config)
    broken.out.mkdir()
    for _ in range(2):
        _step(broken)
    broken.save()
    _step(broken)  # work that is lost
    resumed = _trainer(tmp_path / "b", config, seed=9)
    resumed.run()
    expected, found = _state(unbroken), _state(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    notes = checkpoint.notes(tmp_path / "b")
    assert Start.after(tmp_path / "b") == Start(4, 4 * 2 * 3)
    assert notes["images"] == "24"


def test_a_resumed_run_logs_no_update_twice(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))
    log.write_text(lines + '{"step": 1, "lo')  # the run was killed here
    with Report(tmp_path, Schedule(CONFIG, step=2)) as report:
        report.write(3, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_a_run_goes_on_from_weights_with_new_batches(tmp_path: Path) -> None:
    start = Start(batches=10, images=60)
    trainer = Stage1Trainer(tiny_model(), _generator(), tmp_path, start=start)
    assert list(trainer._numbers_of(0)) == [10]
    trainer.run()
    assert Start.after(tmp_path) == Start(14, 84)


def test_a_loss_that_is_no_number_changes_nothing_and_ends_the_run(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, log_every=3, steps=3)
    trainer = _trainer(tmp_path, config)
    before: dict[str, torch.Tensor] = {}
    plain = trainer.objective.forward

    def spoiled(episode: object) -> object:
        output = plain(episode)
        if trainer.step < 1:
            return output
        before.update(_state(trainer))
        return dataclasses.replace(output, total=output.total * float("nan"))

    trainer.objective.forward = spoiled
    with pytest.raises(NotFiniteError, match=r"update 1 is not finite.*bad_batch"):
        trainer.run()
    after = _state(trainer)
    weights = [n for n in before if not n.startswith("average.")]
    assert all(torch.equal(before[name], after[name]) for name in weights)
    batch = load_file(tmp_path / BAD_BATCH_FILE)
    assert torch.equal(batch["image_N3HW"], _generator(config)[1].image_N3HW)


def test_a_batch_too_large_for_the_device_is_halved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = _trainer(tmp_path, dataclasses.replace(CONFIG, steps=2, groups=4))
    plain = trainer.objective.forward

    def small(episode: object) -> object:
        if len(episode.image_N3HW) > 6:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("too much")
        return plain(episode)

    trainer.objective.forward = small
    trainer.run()
    assert trainer.config.groups == 2
    assert "going on with batches of 2 tasks" in capsys.readouterr().out


@pytest.mark.parametrize("config", [CONFIG, READING], ids=["without the VLM", "with it"])
def test_an_update_waits_for_no_device(tmp_path: Path, config: TrainingConfig) -> None:
    trainer = _trainer(tmp_path, config)
    _step(trainer)
    episodes = [trainer.generator[1]]
    with counted_ops() as ops:
        trainer.train_step(episodes)
    assert not ops.syncs, ops.syncs


def test_training_lowers_the_loss_on_a_repeated_episode(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=40, learning_rate=3e-3, retrieval_probability=0)
    trainer = _trainer(tmp_path, config)
    episode = trainer.generator[0]
    losses = [float(trainer.train_step([episode]).scalars["loss/total"]) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_the_shipped_weights_load_and_see(tmp_path: Path) -> None:
    model = checkpoint.load(preset("nano"), SHIPPED_WEIGHTS / "nano")
    with torch.no_grad():
        features = model.encode_image(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))
    assert features.top_BDHW.shape == (1, 128, 8, 8)
    norms = torch.linalg.vector_norm(features.match_BDHW, dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4)


def test_held_out_scores_do_not_change_the_run(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, validate_every=1, validation_batches=2)
    trainers = []
    for name, held_out in (("a", None), ("b", _generator(config))):
        trainer = Stage1Trainer(
            tiny_model(), _generator(config), tmp_path / name, held_out=held_out
        )
        trainer.run()
        trainers.append(trainer)
    first, second = (_state(t) for t in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert sum("val/dice/one_shot" in line for line in lines) == 4
    assert (tmp_path / "b" / "first_batch.png").is_file()


def test_a_run_does_not_go_on_with_another_configuration(tmp_path: Path) -> None:
    trainer = Stage1Trainer(tiny_model(), _generator(), tmp_path, identity="a")
    _step(trainer)
    trainer.save()
    other = Stage1Trainer(tiny_model(), _generator(), tmp_path, identity="b")
    with pytest.raises(ConfigError, match="other data, beginning or configuration"):
        other.resume()


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    trainer.save()
    state = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(state[: len(state) // 2])
    with pytest.raises(ConfigError, match=r"training_state\.safetensors cannot be read.*away"):
        _trainer(tmp_path).resume()
    wider = Stage1Trainer(tiny_model(), _generator(), tmp_path)
    with torch.no_grad():
        wider.model.prior_weight = torch.nn.Parameter(torch.zeros(7))
    (tmp_path / STATE_FILE).write_bytes(state)
    with pytest.raises(ConfigError, match="cannot be read"):
        wider.resume()


def test_a_run_goes_on_with_the_data_and_the_weights_that_it_began_with(tmp_path: Path) -> None:
    config = Stage1Config(training=CONFIG, canvas=64)

    def of(shown: int) -> packs.Pack:
        labels = np.zeros((64, 64), np.uint8)
        labels[:shown] = 1
        subjects = [PackedSlice(image=labels, labels=labels, subject=str(n)) for n in range(3)]
        return packs.build([(PackedSource(name="p", texts=(ClassText(name="x"),)), subjects)], 64)

    weights = tmp_path / "before"
    weights.mkdir()
    run.build(config, of(20), weights).save()
    begun = ((of(20), None), (of(30), None), (None, None), (of(20), weights))
    found = [run.build(config, data, tmp_path, init=init).identity for data, init in begun]
    assert found[0] == run.build(config, of(20), tmp_path).identity
    assert len(set(found)) == len(begun) - 1  # these weights saw nothing yet


def test_bf16_computes_nearly_the_same(tmp_path: Path) -> None:
    totals = []
    for precision in ("fp32", "bf16"):
        config = dataclasses.replace(CONFIG, precision=precision)
        trainer = Stage1Trainer(tiny_model(), _generator(config), tmp_path)
        totals.append(_step(trainer)["loss/total"])
    assert totals[0] != totals[1]
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


def test_a_frozen_encoder_stays_and_a_slow_one_moves_less(tmp_path: Path) -> None:
    moved = {}
    for rate in (0.0, 0.1, 1.0):
        trainer = Stage1Trainer(tiny_model(), _generator(), tmp_path, encoder_rate=rate)
        before = {n: p.clone() for n, p in trainer.model.image_encoder.named_parameters()}
        _step(trainer)
        after = dict(trainer.model.image_encoder.named_parameters())
        moved[rate] = max(float((after[n] - before[n]).detach().abs().max()) for n in before)
    assert moved[0.0] == 0.0
    assert moved[0.1] == pytest.approx(0.1 * moved[1.0], rel=0.05)


def test_lora_trains_adapters_only_and_stores_a_plain_model(tmp_path: Path) -> None:
    model = tiny_model()
    before = {n: p.clone() for n, p in model.reasoner.vlm.named_parameters()}
    handle = lora.inject(model, FineTuningConfig(lora_rank=2, lora_alpha=64))
    trainer = Stage1Trainer(
        model, _generator(READING), tmp_path, export=lambda trained: lora.merged(trained, handle)
    )
    for _ in range(3):
        _step(trainer)
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
    episode = trainer.generator[0]
    with torch.no_grad():
        ids, mask = model.reasoner.tokenize(["Segment disc."])
        view = model.reasoner.see(episode.image_N3HW[:1])
        seen = [m.reasoner.prefix(ids, mask, view).keys_PLGTD for m in (model, plain)]
    assert torch.allclose(seen[0], seen[1], atol=1e-2)


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
    episode = dataclasses.replace(_generator()[0], image_P=torch.zeros(pairs), shown_PV=shown)
    always = dataclasses.replace(CONFIG, seg_distractor_probability=1.0)
    moved = 0
    for seed in range(10):
        torch.manual_seed(seed)
        heard = _misled(conditioned, episode, always)
        assert torch.equal(heard.seg_P1D.flatten(), heard.seg_map_P1HW.flatten())
        assert torch.equal(heard.seg_P1D[3:], conditioned.seg_P1D[3:])
        moved += int((heard.seg_P1D[:3] != conditioned.seg_P1D[:3]).sum())
    assert moved > 15


@pytest.mark.parametrize("kind", ["made-up", "real"])
def test_the_shipped_weights_train_in_bf16_on_this_cpu(tmp_path: Path, kind: str) -> None:
    """Priors that bf16 rounds to 1 once gave losses that were no numbers."""
    heart = SourceConfig(folder="train", classes=tuple(ClassText(name=n) for n in "abc"))
    slices = packs.build([sources.read(heart, SAMPLE)], 256) if kind == "real" else None
    config = TrainingConfig(
        steps=2,
        groups=2,
        images_per_group=3,
        max_templates=2,
        warmup_steps=0,
        learning_rate=1e-4,
        log_every=1,
        text_share=0.5,
        synthetic_share=0.0 if slices else 1.0,
        precision="bf16",
    )
    model = checkpoint.load(preset("nano"), SHIPPED_WEIGHTS / "nano").requires_grad_(True)
    generator = EpisodeGenerator(slices, config, model.config.image_size)
    trainer = Stage1Trainer(model, generator, tmp_path)
    totals = [_step(trainer)["loss/total"] for _ in range(2)]
    trainer._check_finite()
    assert all(0 < total < 5 for total in totals)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
