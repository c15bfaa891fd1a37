"""Stage 1 episodes: random numbers, packs of slices, plans, made-up scenes, views, corruption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from vessa_common.layouts import DataError
from vessa_common.transfer import to_device
from vessa_server.model import prompts
from vessa_server.model.preprocess import PALETTE
from vessa_server.training import pack as packs
from vessa_server.training import scenes, views
from vessa_server.training.config import TrainingConfig
from vessa_server.training.corruption import corrupt
from vessa_server.training.draws import Draws
from vessa_server.training.episodes import MIN_PIXELS, Episode, EpisodeGenerator
from vessa_server.training.losses import hard_dice
from vessa_server.training.noise import smooth_noise
from vessa_server.training.pack import Pack, PackedSource
from vessa_server.training.planning import Planner, Texts
from vessa_server.training.tasks import MAX_CLASSES, ClassText, PackedSlice

CPU = torch.device("cpu")
CONFIG = TrainingConfig(steps=4, groups=3, images_per_group=4, max_templates=3)


def slices(subjects: int = 12, *, named: str = "s") -> list[PackedSlice]:
    """Pictures with a bright disc (1) and a dark bar (2)."""
    found = []
    for index in range(subjects):
        rng = np.random.default_rng(index)
        image = rng.integers(80, 120, (60, 52)).astype(np.uint8)
        labels = np.zeros((60, 52), np.uint8)
        labels[10 + index : 26 + index, 8:24], labels[44:52, 10:44] = 1, 2
        image[labels == 1], image[labels == 2] = 220, 20
        subject = f"{named}{index}"
        found.append(PackedSlice(image=image, labels=labels, subject=subject, held_out=index > 9))
    return found


def volume_slices(subjects: int = 4) -> list[PackedSlice]:
    """Volumes of nine slices whose middle shows a structure."""
    found = []
    for subject in range(subjects):
        for index in range(9):
            image = np.full((40, 48), 100, np.uint8)
            labels = np.zeros((40, 48), np.uint8)
            if 1 <= index <= 7:
                labels[12:28, 10 + subject : 30] = 1
                image[labels == 1] = 200 - 10 * index
            found.append(
                PackedSlice(
                    image=image,
                    labels=labels,
                    subject=f"v{subject}",
                    axis=2,
                    position=(index - 1) / 6,
                )
            )
    return found


TEXTS = (ClassText(name="disc"), ClassText(name="bar"))


def a_pack() -> Pack:
    """Two sources: pictures and volumes."""
    return packs.build(
        [
            (PackedSource(name="pictures", texts=TEXTS, mirror=False), slices()),
            (PackedSource(name="volumes", texts=TEXTS[:1]), volume_slices()),
        ],
        64,
    )


def _equal(one: Episode, other: Episode) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in (
            (getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Episode)
        )
    )


def test_draws_are_uniform_and_normal_and_independent() -> None:
    draws = Draws(1, 2, CPU)
    uniform = [draws.uniform(20_000).numpy() for _ in range(3)]
    for values in uniform:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
        assert values.min() >= 0
        assert values.max() < 1
    assert abs(np.corrcoef(np.stack(uniform))[np.triu_indices(3, 1)]).max() < 0.03
    assert abs(np.corrcoef(uniform[0][:-1], uniform[0][1:])[0, 1]) < 0.03
    assert stats.kstest(draws.normal(20_000).numpy(), "norm").pvalue > 1e-4


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 9))
@settings(max_examples=30)
def test_draws_are_those_of_plain_integers(seed: int, step: int, count: int) -> None:
    """The hash in 64-bit tensors is PCG's in Python's own integers."""

    def rehash(word: int) -> int:
        state = (word % 2**32 * 747796405 + 2891336453) % 2**32
        word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737 % 2**32
        return (word >> 22) ^ word

    draws = Draws(seed, step, CPU)
    draws.uniform(1)
    offset = rehash(draws.key ^ rehash(2))
    expected = [(rehash(rehash(n ^ offset) + offset) >> 8) / 2**24 for n in range(count)]
    assert draws.uniform(count).tolist() == expected


def test_smooth_noise_is_smooth_and_as_bumpy_as_asked() -> None:
    cells = torch.tensor([2.0, 5.0, 12.0] * 20)
    field = smooth_noise(Draws(0, 0, CPU), cells, 96, 12)
    assert torch.allclose(field.mean(dim=(1, 2)), torch.zeros(60), atol=1e-5)
    assert torch.allclose(field.square().mean(dim=(1, 2)), torch.ones(60), atol=1e-3)
    steps = field.diff(dim=2).square().mean(dim=(1, 2)).view(20, 3).mean(dim=0)
    assert steps[0] < steps[1] < steps[2] < 0.2


def test_an_episode_depends_on_seed_and_number_only() -> None:
    generator = EpisodeGenerator(a_pack(), CONFIG, 64)
    again = EpisodeGenerator(a_pack(), CONFIG, 64)
    again[1]
    assert _equal(generator[3], again[3])
    assert not torch.equal(generator[3].image_N3HW, generator[2].image_N3HW)
    other = EpisodeGenerator(a_pack(), dataclasses.replace(CONFIG, seed=1), 64)
    assert not torch.equal(generator[3].image_N3HW, other[3].image_N3HW)


@pytest.mark.parametrize("pack", [None, a_pack()])
def test_templates_show_the_structure_and_are_of_others_in_the_group(pack: Pack | None) -> None:
    generator = EpisodeGenerator(pack, CONFIG, 64)
    valid = 0
    for number in range(8):
        plan = generator.planner.plan(number)
        episode = generator[number]
        assert bool(((episode.image_N3HW >= 0) & (episode.image_N3HW <= 1)).all())
        assert torch.equal(episode.weight_P > 0, episode.candidates_PM.any(dim=1))
        masks = episode.masks()[:, 0]
        for pair in range(len(episode.image_P)):
            group, member = pair // (2 * 4), pair % 4
            assert int(episode.image_P[pair]) == group * 4 + member
            for candidate in torch.nonzero(episode.candidates_PM[pair]).flatten().tolist():
                valid += 1
                assert plan.key_GM[group, candidate] != plan.key_GM[group, member]
                assert int(masks[pair - member + candidate].sum()) >= MIN_PIXELS
    assert valid > 100


def test_labels_are_where_their_structures_are() -> None:
    """Whatever the view: discs are brighter than what surrounds them, bars darker."""
    config = dataclasses.replace(CONFIG, synthetic_share=0.0, structure_shift=0.0, groups=6)
    pack = packs.build([(PackedSource(name="p", texts=TEXTS), slices())], 128)
    generator = EpisodeGenerator(pack, config, 64)
    contrasts: dict[int, list[float]] = {1: [], 2: []}
    for number in range(6):
        plan = generator.planner.plan(number)
        images, labels = generator.pictures(number)
        for image, label, inverted in zip(
            images.mean(dim=1), labels, plan.views.invert_N.tolist(), strict=True
        ):
            outside = image[(label == 0) & (image > 0.05)]
            for value, found in contrasts.items():
                inside = image[label == value]
                if inverted < 0.5 and len(inside) > 40 and len(outside) > 40:
                    found.append(float(inside.median() - outside.median()))
    assert np.mean(np.array(contrasts[1]) > 0) > 0.9
    assert np.mean(np.array(contrasts[2]) < 0) > 0.9


def test_nothing_is_turned_or_mirrored_where_left_and_right_have_names() -> None:
    config = dataclasses.replace(CONFIG, free_pose=1.0)
    keys = np.tile(np.arange(4), (64, 1))
    drawn = {}
    for mirror in (True, False):
        drawn[mirror] = views.draw(
            np.random.default_rng(0),
            config,
            key_GM=keys,
            mirror_G=np.full(64, mirror),
            elastic_G=np.zeros(64),
        )
    assert bool((drawn[False].mirror_N == 1).all())
    assert float(drawn[False].angle_N.abs().max()) < 1.3
    assert 0.3 < float((drawn[True].mirror_N == -1).float().mean()) < 0.7
    assert float((drawn[True].angle_N.abs() > 1.3).float().mean()) > 0.4


def test_slices_of_one_subject_are_seen_alike() -> None:
    keys = np.array([[0, 0, 1, 1]] * 8)
    drawn = views.draw(
        np.random.default_rng(0),
        CONFIG,
        key_GM=keys,
        mirror_G=np.ones(8, bool),
        elastic_G=np.zeros(8),
    )
    for name in ("angle_N", "mirror_N", "zoom_N", "gamma_N", "gain_N", "invert_N"):
        values = getattr(drawn, name).view(8, 2, 2)
        assert torch.equal(values[..., 0], values[..., 1]), name
        assert name in {"mirror_N", "invert_N"} or not torch.equal(values[:, 0], values[:, 1]), name


def test_a_close_view_shows_the_structures_large_and_whole() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[0, 40:46, 10:18] = 1
    config = dataclasses.replace(CONFIG, view_shares=(0.0, 0.0, 1.0), variation=0.0)
    shares = []
    for seed in range(20):
        drawn = views.draw(
            np.random.default_rng(seed),
            config,
            key_GM=np.array([[0]]),
            mirror_G=np.array([False]),
            elastic_G=np.zeros(1),
        )
        frame = views.frames(drawn, labels, torch.tensor([[60, 50]]), 64, Draws(0, seed, CPU))
        _, seen = views.sample(torch.zeros(1, 3, 64, 64), labels, frame)
        shares.append(float((seen == 1).float().mean()))
    low, middle, high = np.quantile(shares, [0.1, 0.5, 0.9])
    assert 0.08 < low < 0.3 < middle < 0.6 < high


def test_two_volumes_are_each_others_templates_and_end_somewhere() -> None:
    config = dataclasses.replace(CONFIG, volume_share=1.0, synthetic_share=0.0)
    pack = packs.build([(PackedSource(name="v", texts=TEXTS[:1]), volume_slices())], 64)
    planner, empty = Planner(pack, config), 0
    for number in range(20):
        plan = planner.plan(number)
        rows = plan.rows_N.view(3, 4).numpy()
        for keys, group in zip(plan.key_GM.numpy(), rows, strict=True):
            assert keys.tolist() == [0, 0, 1, 1]
            of = pack.subject_R[group]
            assert of[0] == of[1] != of[2] == of[3]
            empty += sum(not pack.label(int(row)).any() for row in group)
    assert empty > 10


def test_slices_of_volumes_show_the_rare_structure_that_they_are_about() -> None:
    """It is in one slice of nine."""
    items = volume_slices(6)
    for item in items:
        if item.position == 0.5:
            item.labels[30:36, 30:36] = 2
    pack = packs.build([(PackedSource(name="v", texts=TEXTS), items)], 64)
    present = pack.present()
    for share in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, volume_share=share, synthetic_share=0.0)
        planner = Planner(pack, config)
        counts = []
        for number in range(40):
            plan = planner.plan(number)
            for rows, asked in zip(plan.rows_N.view(3, 4).numpy(), plan.asked_GQ, strict=True):
                if int(asked[0]) == 2:
                    counts.append(int(present[rows, 2].sum()))
        assert len(counts) > 30
        # One of each volume of two; of slices at the same height nearly all.
        assert np.mean(counts) >= 2 if share else np.mean(counts) > 1.5


def test_the_other_structure_that_is_asked_is_shown_by_half_of_the_images() -> None:
    items = [dataclasses.replace(i, held_out=False) for i in slices(30)]
    for item in items[3:]:
        item.labels[item.labels == 2] = 0
    pack = packs.build([(PackedSource(name="p", texts=TEXTS), items)], 64)
    present = pack.present()
    planner = Planner(pack, dataclasses.replace(CONFIG, synthetic_share=0.0))
    for number in range(40):
        plan = planner.plan(number)
        for rows, asked in zip(plan.rows_N.view(3, 4).numpy(), plan.asked_GQ, strict=True):
            assert present[rows, int(asked[1])].mean() >= 0.5


def test_rare_structures_are_asked_as_often_as_common_ones() -> None:
    items = slices(30)
    items = [dataclasses.replace(i, held_out=False) for i in items]
    for item in items[4:]:
        item.labels[item.labels == 2] = 0
    pack = packs.build([(PackedSource(name="p", texts=TEXTS), items)], 64)
    config = dataclasses.replace(CONFIG, synthetic_share=0.0)
    planner = Planner(pack, config)
    first = torch.cat([planner.plan(n).asked_GQ[:, 0] for n in range(60)])
    assert 0.35 < float((first == 2).float().mean()) < 0.65


def test_held_out_subjects_are_never_trained_on() -> None:
    pack = a_pack()
    for held_out in (False, True):
        planner = Planner(pack, CONFIG, held_out=held_out)
        assert planner.made_up == (0 if held_out else 2)
        seen = np.concatenate([planner.plan(n).rows_N.numpy() for n in range(30)])
        assert set(pack.held_out_R[seen]) == {held_out}


def test_where_only_the_text_decides_templates_show_all_structures() -> None:
    config = dataclasses.replace(CONFIG, text_share=1.0, text_decides=1.0, renamed=0.0)
    generator = EpisodeGenerator(a_pack(), config, 64)
    texts, without_colour = generator.planner.texts.prompts(), 0
    for number in range(6):
        episode = generator[number]
        assert episode.reads
        assert bool(episode.shown_PV[:, 1:].all())
        assert not episode.shown_PV[:, 0].any()
        expected = (episode.labels_NHW[episode.image_P] > 0).float()
        assert torch.equal(episode.shown_masks()[:, 0], expected)
        for row, value in zip(episode.prompt_P.tolist(), episode.class_P.tolist(), strict=True):
            colour = PALETTE[value - 1].name
            assert colour in texts[row] or " area of another image" not in texts[row]
            without_colour += " area of another image" not in texts[row]
    assert without_colour > 20
    silent = EpisodeGenerator(a_pack(), dataclasses.replace(config, text_share=0.0), 64)
    assert not silent[0].reads
    assert bool((silent[0].shown_PV.sum(dim=1) == 1).all())


def test_names_that_mean_nothing_leave_the_colour_to_decide() -> None:
    config = dataclasses.replace(CONFIG, renamed=1.0, text_share=1.0, text_decides=0.0)
    planner = Planner(a_pack(), config)
    texts = planner.texts.prompts()
    for number in range(10):
        for row in planner.plan(number).prompt_GQ.flatten().tolist():
            assert " area of another image" in texts[row]
            assert row // (len(PALETTE) + 1) >= planner.texts.renamed


def test_rows_of_texts_name_text_and_colour() -> None:
    texts = Texts(a_pack(), 0)
    rows = texts.prompts()
    row = int(Texts.row(np.array(1), np.array(3)))
    assert rows[row] == prompts.prompt("bar", "", PALETTE[2].name)


def test_answers_name_size_and_place() -> None:
    mask = torch.zeros(3, 90, 90, dtype=torch.bool)
    mask[1, :20, 70:] = True
    mask[2, 40:45, 5:10] = True
    rows = prompts.answer_row(mask).tolist()
    found = [prompts.ANSWERS[row] for row in rows]
    assert found == [" absent", " medium at top right", " tiny at middle left"]


def test_scenes_annotate_up_to_eight_structures_and_shapes_lie_inside_their_parents() -> None:
    rng = np.random.default_rng(0)
    keys, heights = np.tile(np.arange(2), (200, 1)), np.zeros((200, 2))
    scene, classes = scenes.draw(rng, keys, heights)
    assert set(classes.tolist()) == set(range(1, MAX_CLASSES + 1))
    lookup = scene.lookup_NV.numpy()
    assert all(lookup[2 * g].max() == classes[g] for g in range(200))
    image, labels = scenes.render(scene, 2, Draws(0, 0, CPU))
    assert image.shape == (400, 3, scenes.SIDE, scenes.SIDE)
    assert bool(torch.isfinite(image).all())
    assert int(labels.max()) == MAX_CLASSES
    # Small targets among large ones.
    areas = torch.stack([(labels == 1).float().mean(dim=(1, 2))]).flatten()
    areas = areas[areas > 0]
    assert float((areas < 0.01).float().mean()) > 0.1
    assert float((areas > 0.05).float().mean()) > 0.1


def test_a_cavity_lies_in_its_ring_and_a_neighbour_beside_it() -> None:
    rng = np.random.default_rng(0)
    keys = np.tile(np.arange(2), (100, 1))
    scene, classes = scenes.draw(rng, keys, np.zeros((100, 2)), nested=1.0)
    assert set(classes.tolist()) == {1, 2, 3}
    _, labels = scenes.render(scene, 2, Draws(0, 0, CPU))
    seen, near = 0, []
    for lookup, image in zip(scene.lookup_NV, labels, strict=True):
        ring, cavity, side = (image == v if v else None for v in lookup[scenes.SHAPE :][:3])
        if ring is None or cavity is None or min(int(ring.sum()), int(cavity.sum())) < 50:
            continue
        seen += 1
        around = ndimage.binary_fill_holes((ring | cavity).numpy())
        assert float(torch.from_numpy(around)[cavity].float().mean()) > 0.95
        if side is not None and side.any():
            assert not bool((side & ring).any())
            wider = ndimage.binary_dilation(side.numpy(), iterations=8)
            near.append(bool((wider & ring.numpy()).any()))
    assert seen > 30
    assert np.mean(near) > 0.8


def test_slices_of_a_made_up_volume_shrink_towards_its_ends() -> None:
    rng = np.random.default_rng(0)
    keys = np.zeros((100, 9), dtype=np.int64)
    heights = np.tile(np.linspace(-2.0, 2.0, 9), (100, 1))
    scene, _ = scenes.draw(rng, keys, heights)
    radii = scene.radii_NS2.view(100, 9, scenes.SHAPES, 2)[..., 0]
    assert not radii[:, 0].any()
    assert not radii[:, -1].any()
    peak = radii.argmax(dim=1, keepdim=True)
    place = torch.arange(8)[None, :, None]
    steps = radii.diff(dim=1)
    # Of one subject each shape only grows up to its thickest slice, and only shrinks after it.
    assert bool((steps[(place < peak)] >= 0).all())
    assert bool((steps[(place >= peak)] <= 0).all())


def test_corruption_covers_the_whole_range_of_quality() -> None:
    mask, other = torch.zeros(400, 64, 64), torch.zeros(400, 64, 64)
    mask[:, 20:44, 16:40] = 1
    other[:, 10:20, 16:40] = 1
    student = corrupt(mask, other, Draws(0, 0, CPU))
    assert student.shape == mask.shape
    assert bool(((student >= 0) & (student <= 1)).all())
    scores = hard_dice(student[:, None] - 0.5, mask[:, None]).numpy()
    low, middle, high = np.quantile(scores, [0.1, 0.5, 0.9])
    assert low < 0.3
    assert 0.4 < middle < 0.95
    assert high > 0.85
    hard = ((student == 0) | (student == 1)).flatten(1).all(dim=1)
    assert 0.35 < float(hard.float().mean()) < 0.7


def test_a_pack_keeps_slices_and_is_checked_by_its_digest(tmp_path: Path) -> None:
    pack = a_pack()
    file = tmp_path / "made.pack"
    packs.write(pack, file, quality=100)
    read = packs.read(file)
    assert torch.equal(read.labels_RHW, pack.labels_RHW)
    assert torch.equal(read.planes_LHW, pack.planes_LHW)
    assert read.sources == pack.sources
    for name in ("source_R", "subject_R", "axis_R", "position_R", "held_out_R"):
        assert np.array_equal(getattr(read, name), getattr(pack, name)), name
    packs.write(pack, tmp_path / "lossy.pack", quality=80)
    lossy = packs.read(tmp_path / "lossy.pack")
    assert torch.equal(lossy.labels_RHW, pack.labels_RHW)
    assert float((lossy.planes_LHW.float() - pack.planes_LHW.float()).abs().mean()) < 6
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="sha256"):
        packs.read(file)
    (tmp_path / "made.pack.sha256").unlink()
    with pytest.raises(DataError, match="vessa-server pack"):
        packs.read(file)


def test_a_pack_with_labels_or_sources_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "made.pack"
    pack = a_pack()
    pack.labels_RHW[0, 0, 0] = MAX_CLASSES + 1
    packs.write(pack, file, quality=100)
    with pytest.raises(DataError, match="label 9, expected at most 8"):
        packs.read(file)
    packs.write(dataclasses.replace(a_pack(), source_R=np.full(len(pack), 2)), file, quality=100)
    with pytest.raises(DataError, match="other sources than the 2"):
        packs.read(file)


def test_colours_are_kept_and_grey_is_one_plane() -> None:
    colour = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    labels = np.ones((20, 24), np.uint8)
    items = [
        PackedSlice(image=colour, labels=labels, subject="a"),
        PackedSlice(image=colour[..., 0], labels=labels, subject="b"),
    ]
    pack = packs.build([(PackedSource(name="p", texts=TEXTS[:1]), items)], 32)
    assert len(pack.planes_LHW) == 4
    assert pack.image(0).shape == (20, 24, 3)
    assert not (pack.image(0)[..., 0] == pack.image(0)[..., 1]).all()
    assert (pack.image(1)[..., 0] == pack.image(1)[..., 2]).all()


def test_a_source_left_out_is_drawn_no_more() -> None:
    left = packs.without(a_pack(), ["pictures"])
    assert set(left.source_R) == {1}
    planner = Planner(left, CONFIG)
    for number in range(10):
        assert set(left.source_R[planner.plan(number).rows_N.numpy()]) == {1}
    names = [PackedSource(name="twice", texts=TEXTS), PackedSource(name="twice", texts=TEXTS)]
    both = packs.build([(source, slices(named=str(i))) for i, source in enumerate(names)], 64)
    assert not len(packs.without(both, ["twice"]))
    with pytest.raises(DataError, match="no data set 'x', expected one of pictures, volumes"):
        packs.without(a_pack(), ["x"])


def test_plans_reach_the_device_as_they_were_drawn() -> None:
    plan = Planner(a_pack(), CONFIG).plan(5)
    sent = to_device(plan, CPU)
    assert sent.templates == plan.templates
    assert torch.equal(sent.views.angle_N, plan.views.angle_N)
    assert sent.views.same_NM.dtype == torch.bool
    assert torch.equal(sent.views.same_NM, plan.views.same_NM)
    assert torch.equal(sent.rows_N, plan.rows_N)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_episodes_are_the_same_on_a_gpu() -> None:
    cpu, gpu = (EpisodeGenerator(a_pack(), CONFIG, 64, torch.device(d)) for d in ("cpu", "cuda"))
    for number in range(4):
        one, other = cpu[number], gpu[number]
        close = (one.image_N3HW - other.image_N3HW.cpu()).abs() < 1e-3
        assert float(close.float().mean()) > 0.995
        assert torch.equal(one.class_P, other.class_P.cpu())
        same = one.labels_NHW == other.labels_NHW.cpu()
        assert float(same.float().mean()) > 0.999
