"""Which slices make a batch, what is asked of them, and in which words; drawn on the host.

Axes: G groups, M members, N = G*M images, Q asked structures, V label values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vessa_server.model import prompts
from vessa_server.model.preprocess import PALETTE
from vessa_server.training import scenes, views
from vessa_server.training.config import TrainingConfig
from vessa_server.training.pack import Pack
from vessa_server.training.scenes import Scenes
from vessa_server.training.tasks import MAX_CLASSES, ClassText
from vessa_server.training.views import Views

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
WORDS = prompts.VOCABULARY.split()
# Texts that say nothing, from which one is drawn for a renamed structure.
RENAMED = 255
MADE_UP_ELASTIC, REAL_ELASTIC = 0.1, 0.04
# Share of a group's members that show the structure it is about.
SHOWING = 0.75
# Share of them that show another structure from which it is asked, too.
ALSO_SHOWN = 0.5
# Distance, as a share of the annotated part, of slices of different subjects.
NEIGHBOURHOOD = 0.08


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the device needs to make a batch.

    Attributes:
        rows_N: slices of the pack, of the first groups; made-up images are the others'.
        scenes: of the made-up groups; None without any.
        views: of all images.
        asked_GQ: classes, from 1.
        places_GV: place of each class in the overlay's palette; 0 stays 0.
        shown_all_GQ: whether templates show all structures, so that the text decides.
        prompt_GQ: text and colour, see :meth:`Texts.row`.
        shift_NV: by how much each structure is made brighter.
        key_GM: whom each member is of.
        templates: of each pair.
        reads: whether the VLM is asked.
        retrieves: whether templates are retrieved, not drawn.
    """

    rows_N: Tensor
    scenes: Scenes | None
    views: Views
    asked_GQ: Tensor
    places_GV: Tensor
    shown_all_GQ: Tensor
    prompt_GQ: Tensor
    shift_NV: Tensor
    key_GM: Tensor
    templates: int
    reads: bool
    retrieves: bool


class Texts:
    """All texts that a run shows to the VLM: of classes, of nameless and of renamed ones."""

    def __init__(self, pack: Pack | None, seed: int) -> None:
        sources = pack.sources if pack is not None else ()
        self.first = list(np.cumsum([0, *(len(s.texts) for s in sources)]))
        rng = np.random.default_rng([seed, 0, 1])
        named = [text for source in sources for text in source.texts]
        self.nameless = len(named)
        named += [ClassText(name=f"structure {'ABCDEFGH'[i]}") for i in range(MAX_CLASSES)]
        self.renamed = len(named)
        named.append(ClassText(name="structure"))
        named += [_nonsense(rng) for _ in range(RENAMED)]
        self.texts = tuple(named)

    def prompts(self) -> list[str]:
        """The prompt of each row: every text with each colour, and without one."""
        colours = ["", *(tint.name for tint in PALETTE)]
        return [
            prompts.prompt(text.name, text.description, colour)
            for text in self.texts
            for colour in colours
        ]

    @staticmethod
    def row(text: npt.NDArray[np.int64], place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Row of a text whose structure has the palette's ``place``, 0 for none told."""
        return text * (len(PALETTE) + 1) + place


def _nonsense(rng: np.random.Generator) -> ClassText:
    words = [str(word) for word in rng.choice(WORDS, size=int(rng.integers(1, 7)))]
    return ClassText(name=" ".join(words[:2]), description=" ".join(words[2:]))


@dataclass(frozen=True)
class _Group:
    """Members of one task: rows of the pack, whom they are of, and the classes asked."""

    rows: IntArray
    keys: IntArray
    asked: IntArray
    text: int
    mirror: bool


class Planner:
    """Draws the plan of a batch from seed and number."""

    def __init__(
        self, pack: Pack | None, config: TrainingConfig, *, held_out: bool = False
    ) -> None:
        """``held_out`` plans batches of the held-out subjects only, without made-up tasks.

        Raises:
            ValueError: there is nothing to draw from.
        """
        self.texts = Texts(pack, config.seed)
        self.tasks = tasks(pack, config, held_out=held_out) if pack is not None else []
        self.share = 0.0 if held_out else config.synthetic_share if pack is not None else 1.0
        self.configure(config)
        if not self.tasks and self.made_up < config.groups:
            raise ValueError("data: no source has two annotated images to learn from")
        weights = np.array([task.weight for task in self.tasks])
        self.chances = weights / weights.sum() if len(weights) else weights

    def configure(self, config: TrainingConfig) -> None:
        """Plan batches of another size from now on."""
        self.config = config
        self.made_up = round(self.share * config.groups)

    def plan(self, number: int) -> Plan:
        """The plan of batch ``number``."""
        config = self.config
        rng = np.random.default_rng([config.seed, number])
        groups, members, asked = config.groups, config.images_per_group, config.asked
        reads = bool(rng.uniform() < config.text_share)
        real = [
            self.tasks[int(rng.choice(len(self.tasks), p=self.chances))].group(rng, config)
            for _ in range(groups - self.made_up)
        ]
        made_keys, heights = _made_up_members(rng, self.made_up, config)
        scene, classes = None, np.zeros(0, dtype=np.int64)
        if self.made_up:
            scene, classes = scenes.draw(rng, made_keys, heights, config.nested)
        asked_GQ = np.array(
            [g.asked for g in real] + [_ask(rng, np.arange(1, c + 1), asked) for c in classes]
        )
        places_GV = np.zeros((groups, MAX_CLASSES + 1), dtype=np.int64)
        for group in range(groups):
            places_GV[group, 1:] = 1 + rng.permutation(len(PALETTE))[:MAX_CLASSES]
        key_GM = np.concatenate([*(g.keys[None] for g in real), made_keys])
        shown_all = np.zeros((groups, asked), dtype=bool)
        if reads:
            shown_all |= rng.uniform(size=(groups, 1)) < config.text_decides
        text_G = np.array([g.text for g in real] + [self.texts.nameless] * self.made_up)
        mirror_G = np.array([g.mirror for g in real] + [True] * self.made_up)
        elastic_G = np.where(np.arange(groups) < len(real), REAL_ELASTIC, MADE_UP_ELASTIC)
        rows = np.concatenate([g.rows for g in real]) if real else np.zeros(0, dtype=np.int64)
        shift = config.structure_shift * rng.normal(0, 1, (groups * members, MAX_CLASSES + 1))
        shift[:, 0] = 0
        return Plan(
            rows_N=torch.from_numpy(rows),
            scenes=scene,
            views=views.draw(rng, config, key_GM=key_GM, mirror_G=mirror_G, elastic_G=elastic_G),
            asked_GQ=torch.from_numpy(asked_GQ),
            places_GV=torch.from_numpy(places_GV),
            shown_all_GQ=torch.from_numpy(shown_all),
            prompt_GQ=torch.from_numpy(self._prompts(rng, text_G, asked_GQ, places_GV, shown_all)),
            shift_NV=torch.from_numpy(shift.astype(np.float32)),
            key_GM=torch.from_numpy(key_GM),
            templates=int(rng.integers(1, config.max_templates + 1)),
            reads=reads,
            retrieves=bool(rng.uniform() < config.retrieval_probability),
        )

    def _prompts(
        self,
        rng: np.random.Generator,
        text_G: IntArray,
        asked_GQ: IntArray,
        places_GV: IntArray,
        shown_all_GQ: BoolArray,
    ) -> IntArray:
        """Rows of the prompts. Where a name alone has to decide, no colour is told."""
        place_GQ = np.take_along_axis(places_GV, asked_GQ, axis=1)
        text_GQ = text_G[:, None] + asked_GQ - 1
        named_GQ = text_G[:, None] < self.texts.nameless
        uncoloured = shown_all_GQ & named_GQ & (rng.uniform(size=place_GQ.shape) < 0.5)
        renamed = ~uncoloured & (rng.uniform(size=place_GQ.shape) < self.config.renamed)
        nonsense = self.texts.renamed + np.where(
            rng.uniform(size=place_GQ.shape) < 0.4, 0, rng.integers(0, RENAMED, place_GQ.shape) + 1
        )
        chosen = np.where(renamed, nonsense, text_GQ)
        return Texts.row(chosen, np.where(uncoloured, 0, place_GQ))


def _made_up_members(
    rng: np.random.Generator, groups: int, config: TrainingConfig
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Whom the members are of, and at which heights volumes are cut."""
    members = config.images_per_group
    keys = np.repeat(np.arange(members)[None], groups, axis=0)
    heights = np.zeros((groups, members))
    halves = _halves(members)
    for group in np.flatnonzero(rng.uniform(size=groups) < config.volume_share):
        keys[group] = halves
        heights[group] = _heights(rng, halves) * 2 - 1
    return keys, heights


def _halves(members: int) -> IntArray:
    return (np.arange(members) >= members // 2).astype(np.int64)


def _heights(rng: np.random.Generator, halves: IntArray) -> npt.NDArray[np.float64]:
    """Where two subjects are cut, about 0 to 1: one all over, the other at neighbouring places."""
    first, second = int((halves == 0).sum()), int((halves == 1).sum())
    spread = (np.arange(first) + rng.uniform(0, 1, first)) / first
    step = rng.uniform(0.08, 0.3)
    near = rng.uniform(-0.35, 0.95) + step * np.arange(second)
    near = near - max(0.0, float(near[-1]) - 1.25)
    return np.concatenate([spread, near])


def _ask(rng: np.random.Generator, classes: IntArray, count: int) -> IntArray:
    """``count`` of the classes; the same again where there are fewer."""
    return np.resize(rng.permutation(classes), count)


@dataclass
class Task:
    """One structure of a source: what is drawn first, so that rare ones are seen as often."""

    pack: Pack
    texts: int
    mirror: bool
    weight: float
    rows: IntArray
    present: BoolArray
    value: int

    def group(self, rng: np.random.Generator, config: TrainingConfig) -> _Group:
        """Members of one group."""
        volumes = self.pack.axis_R[self.rows] >= 0
        if volumes.any() and rng.uniform() < config.volume_share:
            rows, keys = self._two_volumes(rng, config)
        elif volumes.any():
            rows, keys = self._alike_slices(rng, config)
        else:
            rows, keys = self._pictures(rng, config)
        shown = self.present[np.searchsorted(self.rows, rows)].mean(axis=0)
        others = np.setdiff1d(np.flatnonzero(shown >= ALSO_SHOWN), [self.value])
        count = config.asked - 1
        rest = _ask(rng, others, count) if others.size else np.full(count, self.value)
        asked = np.concatenate([[self.value], rest])
        return _Group(rows, keys, asked, self.texts, self.mirror)

    def _pictures(
        self, rng: np.random.Generator, config: TrainingConfig
    ) -> tuple[IntArray, IntArray]:
        """Pictures of different subjects where there are as many; most show the structure."""
        members = config.images_per_group
        showing = self.rows[self.present[:, self.value]]
        if config.repeats > 1:
            different = self._distinct(rng, showing, -(-members // config.repeats))
            return rng.permutation(np.resize(different, members)), np.arange(members)
        wanted = int(np.ceil(SHOWING * members))
        chosen = self._distinct(rng, showing, wanted)
        rest = self._distinct(rng, np.setdiff1d(self.rows, chosen), members - len(chosen))
        rows = np.resize(np.concatenate([chosen, rest]), members)
        order = rng.permutation(members)
        keys = self.pack.subject_R[rows]
        if len(np.unique(keys)) == 1:
            # One subject only: its other slices have to serve.
            keys = np.unique(rows, return_inverse=True)[1]
        return rows[order], np.unique(keys, return_inverse=True)[1][order]

    def _distinct(self, rng: np.random.Generator, rows: IntArray, count: int) -> IntArray:
        """``count`` rows, of as many subjects as there are, fewer where there are fewer rows."""
        mixed = rng.permutation(rows)
        subjects = self.pack.subject_R[mixed]
        first = np.unique(subjects, return_index=True)[1]
        again = np.setdiff1d(np.arange(len(mixed)), first)
        order = np.concatenate([rng.permutation(first), again])
        chosen: IntArray = mixed[order[:count]]
        return chosen

    def _alike_slices(
        self, rng: np.random.Generator, config: TrainingConfig
    ) -> tuple[IntArray, IntArray]:
        """Slices of different volumes at similar heights."""
        members = config.images_per_group
        axis = self._axis(rng)
        position = self._showing(rng, self._along(axis))
        subjects = self._subjects(rng, axis, members)
        heights = position + rng.normal(0, NEIGHBOURHOOD, members)
        rows = [self._nearest(s, axis, h) for s, h in zip(subjects, heights, strict=True)]
        keys = np.unique(subjects, return_inverse=True)[1]
        return np.array(rows), keys if keys.max() else np.arange(members)

    def _two_volumes(
        self, rng: np.random.Generator, config: TrainingConfig
    ) -> tuple[IntArray, IntArray]:
        """Slices of two volumes: one all over, the other at neighbouring heights."""
        axis = self._axis(rng)
        pair = self._subjects(rng, axis, 2)
        halves = _halves(config.images_per_group)
        heights = _heights(rng, halves)
        for half, subject in enumerate(pair):
            there = self._along(axis) & self._is_of(subject)
            heights[rng.choice(np.flatnonzero(halves == half))] = self._showing(rng, there)
        rows = [self._nearest(pair[h], axis, z) for h, z in zip(halves, heights, strict=True)]
        return np.array(rows), halves

    def _showing(self, rng: np.random.Generator, there: BoolArray) -> float:
        """Height of one of the rows ``there`` that show the structure; any where none does."""
        shown = self.rows[there & self.present[:, self.value]]
        return float(rng.choice(self.pack.position_R[shown])) if len(shown) else rng.uniform()

    def _along(self, axis: int) -> BoolArray:
        """Which of the rows are cut along ``axis``."""
        found: BoolArray = self.pack.axis_R[self.rows] == axis
        return found

    def _is_of(self, subject: int) -> BoolArray:
        """Which of the rows are of ``subject``."""
        found: BoolArray = self.pack.subject_R[self.rows] == subject
        return found

    def _axis(self, rng: np.random.Generator) -> int:
        return int(rng.choice(np.unique(self.pack.axis_R[self.rows])))

    def _subjects(self, rng: np.random.Generator, axis: int, count: int) -> IntArray:
        there = np.unique(self.pack.subject_R[self.rows[self._along(axis)]])
        return np.resize(rng.permutation(there), count)

    def _nearest(self, subject: int, axis: int, height: float) -> int:
        of = self.rows[self._along(axis) & self._is_of(subject)]
        return int(of[np.abs(self.pack.position_R[of] - height).argmin()])


def tasks(pack: Pack, config: TrainingConfig, *, held_out: bool) -> list[Task]:
    """Every class of every source that enough slices show, of held-out subjects or the others."""
    needed = 1 if config.repeats > 1 else 2
    present = pack.present()
    found = []
    first = np.cumsum([0, *(len(s.texts) for s in pack.sources)])
    for number, source in enumerate(pack.sources):
        rows = np.flatnonzero((pack.source_R == number) & (pack.held_out_R == held_out))
        shown = present[rows]
        classes = [c for c in range(1, MAX_CLASSES + 1) if shown[:, c].sum() >= needed]
        found += [
            Task(
                pack, int(first[number]), source.mirror, source.weight / len(classes), rows,
                shown, c,
            )
            for c in classes
        ]  # fmt: skip
    return found
