"""Settings of the server, from the environment (``VESSA_*``) and from flags."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vessa_server.engine.engine import MIB, EngineSettings

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[3] / "weights"


class ServerSettings(BaseSettings):
    """Every field is an environment variable: ``grpc_port`` is ``VESSA_GRPC_PORT``."""

    model_config = SettingsConfigDict(env_prefix="VESSA_", extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    grpc_port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    http_port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 picks a free one.")
    preset: Literal["nano", "base", "large"] = Field("nano", description="Size of the model.")
    weights: Path | None = Field(
        None, description="Folder with model.safetensors and tokenizer.json; shipped for nano."
    )
    adaptation: Path | None = Field(
        None, description="File that `vessa-server adapt` wrote: weights fitted to the bank."
    )
    bank: Path = Field(Path("vessa-bank"), description="Folder of the template bank.")
    cache: str = Field(
        "vessa-cache", description="redis://host:port/db, a folder, or none: template features."
    )
    cache_max_bytes: int = Field(4096 * MIB, ge=0, description="Size of the embedded cache.")
    token: SecretStr | None = Field(None, description="Bearer token that every call must carry.")
    threads: int = Field(0, ge=0, description="Threads of torch; 0 leaves its default.")
    batch_mode: Literal["exact", "fused"] = Field(
        "exact",
        description="exact: a result does not depend on its batch, bit for bit. "
        "fused: a batch is one forward; for GPUs.",
    )
    max_batch: int = Field(8, ge=1, le=256, description="Requests in one batch.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="Wait for a batch to fill.")
    max_queue: int = Field(64, ge=1, description="Requests that may wait; more are refused.")
    max_stream_in_flight: int = Field(32, ge=1, description="Unanswered requests of a stream.")
    max_image_bytes: int = Field(64 * MIB, ge=1024, description="Largest image as sent.")
    max_image_side: int = Field(4096, ge=8, description="Longest side of an image, in pixels.")
    max_classes: int = Field(32, ge=1, le=255, description="Classes of one request.")
    feature_bytes: int = Field(2048 * MIB, ge=0, description="Image features kept in memory.")
    default_top_k: int = Field(7, ge=1, le=7, description="Templates for each class.")
    turn: bool = Field(
        True, description="Try images in quarter turns where upright they fit the templates badly."
    )
    focus: bool = Field(
        True, description="Look a second time, closer, where structures are small in the image."
    )
    grace_seconds: float = Field(20.0, ge=0, description="Time to finish requests at shutdown.")
    log_format: Literal["console", "json"] = Field("console", description="Form of the logs.")

    @field_validator("token", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    def weights_folder(self) -> Path:
        """Where the weights of the preset are."""
        return self.weights or SHIPPED_WEIGHTS / self.preset

    def engine_settings(self) -> EngineSettings:
        """The part that the engine needs."""
        return EngineSettings(
            max_image_bytes=self.max_image_bytes,
            max_image_side=self.max_image_side,
            max_classes=self.max_classes,
            default_top_k=self.default_top_k,
            turn=self.turn,
            focus=self.focus,
            feature_bytes=self.feature_bytes,
            fuse=self.batch_mode == "fused",
        )
