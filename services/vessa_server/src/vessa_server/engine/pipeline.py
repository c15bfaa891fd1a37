"""The work of one batch: whole images first, and where structures are small a second look.

Axes: P image-class pairs, K templates, C classes, H W space.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_client import TemplateInfo, TemplateUse
from vessa_server.engine import retrieval, volumes
from vessa_server.engine.lru import ByteLru
from vessa_server.engine.stages import StageClock
from vessa_server.engine.template_store import Focus, TemplateStore
from vessa_server.engine.work import MORE_OWN_MARGIN, Prepared, View, Work
from vessa_server.model import preprocess
from vessa_server.model.preprocess import Canvas
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.vessa import Conditioned, Decoded, ImageFeatures, TemplateFeatures, Vessa

EXPLANATION_TOKENS = 24
# By how much the mean estimated IoU of a turned view must be better.
TURN_MARGIN = 0.08
# Overlap of windows from which a student's is the same as VESSA's own.
SAME_WINDOW = 0.5


@dataclass(frozen=True)
class Place:
    """Where a volume's structures are.

    Attributes:
        canvas: on which its slices are seen.
        core_CHW: where most of them show each class.
    """

    canvas: Canvas
    core_CHW: Tensor


class Pipeline:
    """Runs the five steps on batches and remembers what a student's mask does not change."""

    def __init__(
        self,
        model: Vessa,
        templates: TemplateStore,
        *,
        feature_bytes: int,
        turn: bool,
        focus: bool,
    ) -> None:
        self.model = model
        self.turn = turn
        self.templates = templates
        self.focus = focus
        self.features: ByteLru[View | Prepared | Place] = ByteLru(feature_bytes)

    def run(self, works: list[Work]) -> None:
        """Fill ``prepared`` and ``decoded`` of every work."""
        fresh = []
        for work in works:
            prepared = self.features.get(("prepared", *work.key()))
            work.prepared = prepared if isinstance(prepared, Prepared) else None
            work.cached = work.prepared is not None
            if work.prepared is None:
                fresh.append(work)
        if fresh:
            self._prepare_all(fresh)
        for work in works:
            if work.request.explain:
                self._explain(work)
            work.mix()
        elsewhere = self._where_students_look(works) if self.focus else []
        others = [(work, other, 0.0) for work, other in elsewhere]
        others += [
            (work, work.with_more_of_its_own(), MORE_OWN_MARGIN)
            for work in works
            if work.told_how_sure
        ]
        todo = [work for work in works if work.decoded is None or work.prompt_CHW is not None]
        if todo:
            self._decode([*todo, *(other for _, other, _ in others)])
        for work, other, margin in others:
            if other.repair_quality() > work.repair_quality() + margin:
                work.take(other)

    def _prepare_all(self, works: list[Work]) -> None:
        """Steps 1 to 5 without students' masks, and keep what they give."""
        alone = [work for work in works if not work.volume]
        if alone:
            self._prepare_alone(alone)
        for work in works:
            if work.volume:
                self._prepare_of_volume(work)
            self._keep_own(work)

    def _prepare_of_volume(self, work: Work) -> None:
        """Look where the slices of its volume agree that the structures are."""
        key = ("place", *work.volume_key())
        place = self.features.get(key)
        if not isinstance(place, Place):
            slices = [work.neighbour(image) for image in work.volume]
            whole = Canvas(work.height, work.width, self.model.config.image_size)
            found = volumes.find(slices, whole, self._look, turn=self.turn, focus=self.focus)
            place = Place(found.canvas, volumes.cores(found.works))
            self.features.put(key, place, place.core_CHW.nbytes)
            for slice_ in found.works:
                slice_.of_volume(place.core_CHW)
                self._keep_own(slice_)
        work.take(self._look([work], place.canvas)[0])
        work.of_volume(place.core_CHW)

    def _look(self, works: Sequence[Work], canvas: Canvas) -> list[Work]:
        """Steps 1 to 5 on one canvas."""
        seen = [replace(work) for work in works]
        for work in seen:
            held = self.features.get(("prepared", *work.key()))
            if isinstance(held, Prepared) and held.view.canvas == canvas:
                # Found anew, a volume must not depend on where it was found before.
                work.prepared = replace(held, core_CHW=None)
            else:
                self._prepare(work, self._encode([work], [canvas])[0])
            self._decode([work])
        return seen

    def _prepare_alone(self, works: list[Work]) -> None:
        """Look at whole images and, where the structures are small in them, once more closer."""
        for work, view in zip(works, self._whole_views(works), strict=True):
            self._prepare(work, view)
        self._decode(works)
        if self.turn:
            for work in works:
                self._turn(work)
        if self.focus:
            self._look_closer(works)

    def _keep_own(self, work: Work) -> None:
        """Keep what was made without a student's mask."""
        work.keep_own()
        self._keep(("prepared", *work.key()), work)

    def _keep(self, key: Hashable, work: Work) -> None:
        assert work.prepared is not None
        self.features.put(key, work.prepared, work.prepared.nbytes)

    def _turn(self, work: Work) -> None:
        """Turn the image by quarters where it is unsure, and fits the templates clearly better."""
        quality = work.quality()
        if quality >= volumes.TURN_BELOW:
            return
        assert work.prepared is not None
        upright = work.prepared.view.canvas
        canvases = [replace(upright, turns=turns) for turns in (1, 2, 3)]
        turned = [replace(work) for _ in canvases]
        for other, view in zip(turned, self._encode(turned, canvases), strict=True):
            self._prepare(other, view)
        self._decode(turned)
        qualities = [other.quality() for other in turned]
        if max(qualities) > quality + TURN_MARGIN:
            best = turned[qualities.index(max(qualities))]
            work.take(best)

    def _look_closer(self, works: list[Work]) -> None:
        """Steps 1 to 4 again on the window around what was found, where it is small."""
        close = []
        for work in works:
            assert work.prepared is not None
            crop = preprocess.focus(work.own_answer().found().numpy())
            if crop is not None:
                close.append((work, replace(work.prepared.view.canvas, crop=crop)))
        if close:
            views = self._encode([w for w, _ in close], [c for _, c in close])
            for (work, _), view in zip(close, views, strict=True):
                self._prepare(work, view)
            self._decode([work for work, _ in close])

    def _where_students_look(self, works: list[Work]) -> list[tuple[Work, Work]]:
        """Works whose student found the structures somewhere else, and the same works there."""
        elsewhere = []
        for work in works:
            if work.student_CHW is None:
                continue
            assert work.prepared is not None
            canvas = work.prepared.view.canvas
            crop = preprocess.focus((work.student_CHW.sum(dim=0) >= 0.5).numpy())
            there = replace(canvas, crop=crop)
            if there.window.overlap(canvas.window) >= SAME_WINDOW:
                continue
            key = ("prepared", *work.key(), there)
            held = self.features.get(key)
            other = replace(work, prepared=held if isinstance(held, Prepared) else None)
            if not isinstance(held, Prepared):
                self._prepare(other, self._encode([other], [there])[0])
                if work.prepared.core_CHW is not None:
                    other.of_volume(work.prepared.core_CHW)
                self._keep(key, other)
            elsewhere.append((work, other))
        return elsewhere

    def _whole_views(self, works: list[Work]) -> list[View]:
        held = [self.features.get(work.image_key()) for work in works]
        missing = [w for w, view in zip(works, held, strict=True) if not isinstance(view, View)]
        size = self.model.config.image_size
        computed = iter(
            self._encode(missing, [Canvas(w.height, w.width, size) for w in missing])
            if missing
            else []
        )
        views = []
        for work, found in zip(works, held, strict=True):
            view = found if isinstance(found, View) else next(computed)
            self.features.put(work.image_key(), view, view.nbytes)
            views.append(view)
        return views

    def _encode(
        self, works: list[Work], canvases: list[Canvas], *, read: bool = False
    ) -> list[View]:
        """Encode images on canvases; the VLM sees those of requests with a text, or ``read``."""
        read = read or any(work.plan.text for work in works)
        with StageClock.shared([work.clock for work in works], "encode_image"):
            # Turned views are of one image, which is scaled once.
            pixels = {work.image.sha256: work.image.pixels for work in works}
            scaled = {sha: preprocess.to_unit_range(array) for sha, array in pixels.items()}
            unit = torch.stack(
                [
                    canvas.place(scaled[work.image.sha256])
                    for work, canvas in zip(works, canvases, strict=True)
                ]
            )
            view = preprocess.vlm_view(unit, self.model.config.vlm.image_size) if read else None
            features = self.model.encode_image(preprocess.normalise(unit, self.model.config), view)
        return [
            View(canvas, features.select(torch.tensor([index])))
            for index, canvas in enumerate(canvases)
        ]

    def _prepare(self, work: Work, view: View) -> None:
        """Steps 1 to 4 for all classes of one view."""
        focus_on = work.focus_on(view)
        count = len(work.plan.classes)
        image_P = torch.zeros(count, dtype=torch.long)
        computed = self.templates.computed
        chosen, used = self._retrieve(work, view)
        with work.clock.stage("template_features"):
            templates = TemplateFeatures.concatenate(
                [
                    self.templates.features(info, work.plan.classes[c].name, focus_on=focus_on)
                    for c in range(count)
                    for info in chosen[c]
                ]
            )
            read = tuple(infos[0] for infos in chosen)
            prefix = self._prompts(work, read, focus_on) if work.plan.text else None
        work.templates_cached &= self.templates.computed == computed
        with work.clock.stage("match"):
            matched = self.model.match(view.features, image_P, templates)
        with work.clock.stage("remember"):
            top = self.model.remember(view.features, image_P, templates)
        with work.clock.stage("reason"):
            # A template has a mask for each structure: without a text of the request the VLM
            # has nothing to add, and costs nothing.
            reasoned = (
                self.model.reason(prefix, view.features, image_P)
                if prefix is not None
                else self.model.unreasoned(view.features, count)
            )
        conditioned = Conditioned(
            top_PDHW=top,
            prior_P1HW=matched.prior_P1HW,
            points_PN2=matched.points_PN2,
            labels_PN=matched.labels_PN,
            seg_P1D=reasoned.seg_P1D,
            seg_map_P1HW=reasoned.seg_map_P1HW,
        )
        work.prepared = Prepared(view, conditioned, used, read)

    def _retrieve(
        self, work: Work, view: View
    ) -> tuple[list[list[TemplateInfo]], tuple[TemplateUse, ...]]:
        """``top_k`` templates of each class; the best one again where there are fewer."""
        focus_on = work.focus_on(view)
        classes, candidates = work.plan.classes, work.plan.candidates
        query = view.features.match_BDHW
        names = tuple(c.name for c in classes)
        shown_CK = torch.tensor([[name in t.class_names for t in candidates] for name in names])
        with work.clock.stage("template_features"):
            embeddings_CK2D = self.templates.embeddings(candidates, names, focus_on=focus_on)
        with work.clock.stage("retrieve"):
            matcher = self.model.matcher
            scores_CK = torch.cat([matcher.retrieval_scores(query, e) for e in embeddings_CK2D])
            most = min(work.plan.top_k, int(shown_CK.sum(1).max()))
            orders = retrieval.choose(scores_CK, embeddings_CK2D, shown_CK, most)
        used = tuple(
            TemplateUse(
                template_id=candidates[k].template_id,
                class_name=definition.name,
                similarity=float(scores_CK[c, k]),
            )
            for c, definition in enumerate(classes)
            for k in orders[c]
        )
        filled = [order + order[:1] * (most - len(order)) for order in orders]
        chosen = [[candidates[k] for k in order] for order in filled]
        return chosen, used

    def _prompts(self, work: Work, read: tuple[TemplateInfo, ...], focus_on: Focus) -> PromptPrefix:
        """What the VLM reads before it sees the image, of each class."""
        return PromptPrefix.concatenate(
            [
                self.templates.prefix(info, definition, work.plan.text, focus_on=focus_on)
                for info, definition in zip(read, work.plan.classes, strict=True)
            ]
        )

    def _explain(self, work: Work) -> None:
        assert work.prepared is not None
        with work.clock.stage("explain"):
            view = work.prepared.view
            prefix = self._prompts(work, work.prepared.read, work.focus_on(view))
            image_P = torch.zeros(len(work.plan.classes), dtype=torch.long)
            features = view.features
            if not features.seen:
                features = self._encode([work], [view.canvas], read=True)[0].features
            target = features.visual_tokens().select(image_P)
            work.explanations = self.model.reasoner.explain(prefix, target, EXPLANATION_TOKENS)

    def _decode(self, works: list[Work]) -> None:
        prepared = [work.prepared for work in works if work.prepared is not None]
        features = ImageFeatures.concatenate([p.view.features.unseen() for p in prepared])
        conditioned = Conditioned.concatenate([p.conditioned for p in prepared])
        counts = [len(work.plan.classes) for work in works]
        image_P = torch.arange(len(works)).repeat_interleave(torch.tensor(counts))
        students, has = [], []
        size = self.model.config.image_size // 2
        for work, found, count in zip(works, prepared, counts, strict=True):
            prompt = work.prompt_CHW
            has.append(torch.full((count,), prompt is not None))
            student = torch.zeros(count, 1, size, size)
            if prompt is not None:
                placed = found.view.canvas.place(prompt, mode="area")
                student = F.adaptive_avg_pool2d(placed, size)[:, None]
            students.append(student)
        has_student_P = torch.cat(has)
        any_student = bool(has_student_P.any())
        with StageClock.shared([work.clock for work in works], "decode_mask"):
            decoded = self.model.decode(
                features,
                image_P,
                conditioned,
                torch.cat(students) if any_student else None,
                has_student_P if any_student else None,
            )
        start = 0
        for work, count in zip(works, counts, strict=True):
            rows = slice(start, start + count)
            work.decoded = Decoded(
                decoded.logits_P1HW[rows], decoded.iou_P[rows], decoded.presence_P[rows]
            )
            start += count
