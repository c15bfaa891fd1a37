"""The model in this process, on a CPU or a GPU.

Axes: B images, P image-class pairs, C classes, K templates of a class, N templates, D features,
H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vessa_server.model import preprocess
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.records import TensorRecord
from vessa_server.model.vessa import Conditioned, ImageFeatures, TemplateFeatures, Vessa
from vessa_server.runtime.budget import CudaMeter, MemoryBudget
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import (
    Bools,
    Conditioning,
    Decoded,
    Decoding,
    Described,
    Floats,
    Handle,
    RuntimeInfo,
    RuntimeUnavailableError,
)

R = TypeVar("R", bound=TensorRecord)
KINDS: dict[str, type[TensorRecord]] = {"template": TemplateFeatures, "prefix": PromptPrefix}


@dataclass(frozen=True)
class Embeddings(TensorRecord):
    """Retrieval embeddings of the templates of an index."""

    embeddings_CN2D: Tensor


@dataclass(frozen=True, eq=False)
class TensorHandle(Generic[R]):
    """Rows of a batch, kept on the device as long as somebody refers to them."""

    record: R

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.record.nbytes


class TorchRuntime:
    """Runs :class:`Vessa` with PyTorch. One thread at a time."""

    def __init__(self, model: Vessa, digest: str, *, max_batch: int = 64) -> None:
        """Serve ``model`` where it is.

        Args:
            model: on its device, in its dtype.
            digest: of its weights.
            max_batch: most images, or image-class pairs, in one forward.
        """
        self.model = model.eval().requires_grad_(False)
        self.digest = digest
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        meter = CudaMeter(self.device) if self.device.type == "cuda" else None
        self.budget = MemoryBudget(meter, max_batch)

    @property
    def info(self) -> RuntimeInfo:
        """Model and device."""
        config = self.model.config
        return RuntimeInfo(
            runtime="torch",
            model_name=config.name,
            model_digest=self.digest,
            parameters=sum(p.numel() for p in self.model.parameters()),
            canvas=config.image_size,
            feature_dim=config.matcher.feature_dim,
            device=_device_name(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            memory=_memory(self.device, self.model),
        )

    def encode(
        self, canvases: Sequence[Floats], clock: StageClock, *, read: bool = False
    ) -> list[Handle]:
        """See :class:`Runtime`."""

        def forward(part: Sequence[Floats]) -> ImageFeatures:
            images = [torch.from_numpy(c).to(self.device).expand(3, -1, -1) for c in part]
            unit_B3HW = torch.stack(images)
            config = self.model.config
            seen = preprocess.vlm_view(unit_B3HW, config.vlm.image_size) if read else None
            return self.model.encode_image(preprocess.normalise(unit_B3HW, config), seen)

        with self._computing(clock, "encode_image"):
            return self._rows("read" if read else "encode", canvases, forward)

    def describe(
        self, images: Sequence[Handle], masks_HW: Sequence[Bools], clock: StageClock
    ) -> list[Described]:
        """See :class:`Runtime`."""
        pairs = list(zip(images, masks_HW, strict=True))

        def forward(part: Sequence[tuple[Handle, Bools]]) -> TemplateFeatures:
            features = ImageFeatures.concatenate([_record(i, ImageFeatures) for i, _ in part])
            masks = np.stack([mask_HW for _, mask_HW in part])[:, None].astype(np.float32)
            return self.model.encode_template(features, torch.from_numpy(masks).to(self.device))

        with self._computing(clock, "template_features"):
            handles = self._rows("describe", pairs, forward)
            return [
                Described(handle, _array(_record(handle, TemplateFeatures).embedding_K2D[0]))
                for handle in handles
            ]

    def index(self, embeddings_CN2D: Floats) -> Handle:
        """See :class:`Runtime`."""
        return TensorHandle(Embeddings(torch.from_numpy(embeddings_CN2D).to(self.device)))

    def similarity(
        self, images: Sequence[Handle], index: Handle, clock: StageClock
    ) -> list[Floats]:
        """See :class:`Runtime`."""
        score = self.model.matcher.retrieval_scores
        with self._computing(clock, "retrieve"):
            classes = _record(index, Embeddings).embeddings_CN2D
            queries = [_record(image, ImageFeatures).match_BDHW for image in images]
            return [_array(torch.cat([score(query, e) for e in classes])) for query in queries]

    def prefix(self, overlays: Sequence[Floats], prompts: Sequence[str]) -> list[Handle]:
        """See :class:`Runtime`."""
        reasoner = self.model.reasoner
        pairs = list(zip(overlays, prompts, strict=True))

        def forward(part: Sequence[tuple[Floats, str]]) -> PromptPrefix:
            overlay = torch.from_numpy(np.stack([overlay for overlay, _ in part])).to(self.device)
            view = preprocess.vlm_view(overlay, self.model.config.vlm.image_size)
            ids, attention = reasoner.tokenize([prompt for _, prompt in part])
            return reasoner.prefix(ids, attention, reasoner.see(view))

        with self._computing():
            return self._rows("prefix", pairs, forward)

    def condition(self, items: Sequence[Conditioning], clock: StageClock) -> list[Handle]:
        """See :class:`Runtime`."""
        handles: list[Handle | None] = [None] * len(items)
        with self._computing():
            # Rows of a forward have equally many templates, and the VLM reads all or none.
            for alike in _alike(items):
                computed = self.budget.parts(
                    f"condition on {len(items[alike[0]].templates[0])}",
                    alike,
                    lambda index: len(items[index].templates),
                    lambda part: self._condition([items[index] for index in part], clock),
                )
                found = (handle for part in computed for handle in part)
                for index, handle in zip(alike, found, strict=True):
                    handles[index] = handle
        return [handle for handle in handles if handle is not None]

    def decode(self, items: Sequence[Decoding], clock: StageClock) -> list[Decoded]:
        """See :class:`Runtime`."""
        with self._computing(clock, "decode_mask"):
            parts = self.budget.parts("decode", items, _classes, self._decode)
            return [decoded for part in parts for decoded in part]

    def explain(
        self, image: Handle, prefixes: Sequence[Handle], tokens: int, clock: StageClock
    ) -> list[str]:
        """See :class:`Runtime`."""
        with self._computing(clock, "explain"):
            prefix = PromptPrefix.concatenate([_record(p, PromptPrefix) for p in prefixes])
            image_P = torch.zeros(len(prefixes), dtype=torch.long, device=self.device)
            target = _record(image, ImageFeatures).visual_tokens().select(image_P)
            return self.model.reasoner.explain(prefix, target, tokens)

    def dump(self, handle: Handle) -> dict[str, Any]:
        """See :class:`Runtime`."""
        record = _record(handle, TensorRecord)
        return {name: tensor.cpu() for name, tensor in record.to_tensors().items()}

    def restore(self, kind: str, tensors: dict[str, Any]) -> Handle:
        """See :class:`Runtime`."""
        sent = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return TensorHandle(KINDS[kind].from_tensors(sent))

    def close(self) -> None:
        """Nothing to release: memory goes with the last reference."""

    def _condition(self, items: Sequence[Conditioning], clock: StageClock) -> list[Handle]:
        counts = [len(item.templates) for item in items]
        image_P = self._image_of_pair(counts)
        features = ImageFeatures.concatenate([_record(i.image, ImageFeatures) for i in items])
        templates = TemplateFeatures.concatenate(
            [_record(t, TemplateFeatures) for item in items for row in item.templates for t in row]
        )
        with self._stage(clock, "match"):
            matched = self.model.match(features, image_P, templates)
        with self._stage(clock, "remember"):
            top = self.model.remember(features, image_P, templates)
        prefixes = [p for item in items for p in item.prefixes or ()]
        with self._stage(clock, "reason"):
            # A template has a mask for each structure: without a text of the request the VLM
            # has nothing to add, and costs nothing.
            if prefixes:
                prefix = PromptPrefix.concatenate([_record(p, PromptPrefix) for p in prefixes])
                reasoned = self.model.reason(prefix, features, image_P)
            else:
                reasoned = self.model.unreasoned(features, len(image_P))
        conditioned = Conditioned(
            top_PDHW=top,
            prior_P1HW=matched.prior_P1HW,
            points_PN2=matched.points_PN2,
            labels_PN=matched.labels_PN,
            seg_P1D=reasoned.seg_P1D,
            seg_map_P1HW=reasoned.seg_map_P1HW,
        )
        return _split(conditioned, counts)

    def _decode(self, items: Sequence[Decoding]) -> list[Decoded]:
        counts = [_classes(item) for item in items]
        features = ImageFeatures.concatenate(
            [_record(item.image, ImageFeatures).unseen() for item in items]
        )
        conditioned = Conditioned.concatenate(
            [_record(item.conditioned, Conditioned) for item in items]
        )
        student_P1HW, has_student_P = self._students(items, counts)
        decoded = self.model.decode(
            features, self._image_of_pair(counts), conditioned, student_P1HW, has_student_P
        )
        logits_PHW, iou_P = _array(decoded.class_logits()[:, 0]), _array(decoded.iou_P)
        ends = np.cumsum(counts)[:-1]
        return [
            Decoded(logits_CHW, iou_C)
            for logits_CHW, iou_C in zip(
                np.split(logits_PHW, ends), np.split(iou_P, ends), strict=True
            )
        ]

    def _students(
        self, items: Sequence[Decoding], counts: Sequence[int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Prompts of all pairs, zeros where there are none, and which pairs have one."""
        if all(item.prompt_CHW is None for item in items):
            return None, None
        size = self.model.config.image_size // 2
        maps = [
            np.zeros((count, size, size), np.float32) if i.prompt_CHW is None else i.prompt_CHW
            for i, count in zip(items, counts, strict=True)
        ]
        has = np.repeat([item.prompt_CHW is not None for item in items], counts)
        student_P1HW = torch.from_numpy(np.concatenate(maps)[:, None]).to(self.device)
        return student_P1HW, torch.from_numpy(has).to(self.device)

    def _image_of_pair(self, counts: Sequence[int]) -> Tensor:
        index = np.repeat(np.arange(len(counts)), counts)
        return torch.from_numpy(index).to(self.device)

    def _rows(
        self, step: str, items: Sequence[Any], forward: Callable[[Sequence[Any]], TensorRecord]
    ) -> list[Handle]:
        """A handle for each row of what ``forward`` gives for parts of a batch."""
        parts = self.budget.parts(
            step, items, lambda _: 1, lambda part: _split(forward(part), [1] * len(part))
        )
        return [handle for part in parts for handle in part]

    @contextmanager
    def _stage(self, clock: StageClock, name: str) -> Iterator[None]:
        """Time a part of a forward, whose errors are the forward's."""
        with clock.stage(name):
            yield
            _wait_for(self.device)

    def _computing(self, clock: StageClock | None = None, stage: str = "") -> _Computing:
        return _Computing(self.device, clock, stage)


class _Computing:
    """Inference mode; errors of the device in words; waits for it where times are taken."""

    def __init__(self, device: torch.device, clock: StageClock | None, stage: str) -> None:
        self.device, self.clock, self.stage = device, clock, stage
        self._mode = torch.inference_mode()

    def __enter__(self) -> None:
        self._mode.__enter__()
        if self.clock is not None:
            self._timing = self.clock.stage(self.stage)
            self._timing.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if self.clock is not None and kind is None:
            _wait_for(self.device)
            self._timing.__exit__(None, None, None)
        self._mode.__exit__(kind, error, trace)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            raise RuntimeUnavailableError(
                f"device: no memory left on {_device_name(self.device)} for this batch; lower "
                "VESSA_FEATURE_BYTES or VESSA_MAX_BATCH",
                retry_after=1.0,
            ) from None


def _record(handle: Handle, kind: type[R]) -> R:
    if not isinstance(handle, TensorHandle) or not isinstance(handle.record, kind):
        raise TypeError(f"expected a handle of {kind.__name__} of this runtime")
    return handle.record


def _array(tensor: Tensor) -> Any:
    return tensor.float().cpu().numpy()


def _classes(item: Decoding) -> int:
    return int(_record(item.conditioned, Conditioned).prior_P1HW.shape[0])


def _split(record: TensorRecord, counts: Sequence[int]) -> list[Handle]:
    """A handle for the rows of each item, which does not keep the whole batch."""
    return [TensorHandle(part.compact()) for part in record.split(counts)]


def _alike(items: Sequence[Conditioning]) -> list[list[int]]:
    """Indices of items with equally many templates of a class, with or without prefixes."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, item in enumerate(items):
        key = (len(item.templates[0]), item.prefixes is not None)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _memory(device: torch.device, model: Vessa) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
