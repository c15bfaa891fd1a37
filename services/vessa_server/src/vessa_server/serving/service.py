"""The service itself: one object behind gRPC and REST."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from importlib.metadata import version

from vessa_client import (
    AnyArray,
    AuthenticationError,
    BankListing,
    ClassDefinition,
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    ServerLimits,
    TemplateInfo,
)
from vessa_server.engine import VessaEngine
from vessa_server.serving.batcher import Batcher
from vessa_server.serving.metrics import Metrics
from vessa_server.serving.settings import ServerSettings


class Service:
    """Segments, and keeps the bank; all methods are for the event loop."""

    def __init__(self, engine: VessaEngine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.batcher = Batcher(
            engine,
            self.metrics,
            max_batch=settings.max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_queue=settings.max_queue,
        )
        self.ready = False
        self._parameters = sum(p.numel() for p in engine.model.parameters())

    def authenticate(self, authorization: str | None) -> None:
        """Check the bearer token, where the server has one.

        Raises:
            AuthenticationError: it is missing or wrong.
        """
        if self.settings.token is None:
            return
        expected = f"Bearer {self.settings.token.get_secret_value()}"
        if not hmac.compare_digest((authorization or "").encode(), expected.encode()):
            raise AuthenticationError(
                "authorization: expected `Bearer <token>` with the server's VESSA_TOKEN",
                field="authorization",
            )

    async def segment(self, request: SegmentationRequest) -> SegmentationResult:
        """Segment one image; see :meth:`Batcher.submit` for its errors."""
        return await self.batcher.submit(request)

    async def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Sequence[ClassDefinition],
        name: str,
    ) -> tuple[TemplateInfo, bool]:
        """Add a template; see :meth:`TemplateBank.add`."""
        return await asyncio.to_thread(self.engine.add_template, image, labels, classes, name=name)

    async def delete_template(self, template_id: str) -> str:
        """Delete a template; see :meth:`TemplateBank.delete`."""
        return await asyncio.to_thread(self.engine.bank.delete, template_id)

    async def listing(self) -> BankListing:
        """Templates and classes."""
        return await asyncio.to_thread(self.engine.bank.snapshot)

    async def info(self) -> ServerInfo:
        """Model, bank and limits."""
        bank = await self.listing()
        engine, settings = self.engine, self.settings
        return ServerInfo(
            version=version("vessa-server"),
            model_name=engine.model.config.name,
            model_digest=engine.model_digest,
            model_parameters=self._parameters,
            canvas_size=engine.model.config.image_size,
            bank_version=bank.version,
            num_templates=len(bank.templates),
            classes=bank.classes,
            limits=ServerLimits(
                max_image_bytes=settings.max_image_bytes,
                max_image_side=settings.max_image_side,
                max_classes=settings.max_classes,
                max_top_k=engine.settings.max_top_k,
                max_stream_in_flight=settings.max_stream_in_flight,
            ),
            cache_backend=engine.cache.backend,
        )
