"""Settings of the server, from the environment (``VESSA_*``) and from flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vessa_client import VessaError
from vessa_server.engine_settings import MIB, EngineSettings
from vessa_server.policy import RULES, PolicyConfig

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[3] / "weights"
# Of the client, and of whoever starts a tritonserver.
NOT_THE_SERVERS = {
    "VESSA_SERVER",
    "VESSA_CLIENT_BANK",
    "VESSA_ROOT_CERTIFICATES",
    "VESSA_TRITONSERVER",
}


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
    device: str = Field(
        "auto", description="auto, cpu, cuda or cuda:N; several with commas, such as cuda:0,cuda:1."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the model; auto: bfloat16 on GPUs that have it, else float32."
    )
    runtime: str = Field(
        "torch", description="torch: in this process. triton://host:port: on a tritonserver."
    )
    bank: Path = Field(Path("vessa-bank"), description="Folder of the template bank.")
    studies: Path | None = Field(
        None, description="Folder of scans that MONAI Label's clients work on; without it, none is."
    )
    studies_origins: str = Field(
        "",
        description="Pages of other hosts that may use the scans without a token, such as "
        "https://ohif.example.org; several with commas, or * for all.",
    )
    runs_dir: Path | None = Field(
        None, description="Folder of the trainer's runs, which the page shows; without it, none is."
    )
    cache: str = Field(
        "vessa-cache", description="redis://host:port/db, a folder, or none: template features."
    )
    cache_max_bytes: int = Field(4096 * MIB, ge=0, description="Size of the embedded cache.")
    token: SecretStr | None = Field(None, description="Bearer token that every call must carry.")
    threads: int = Field(
        0, ge=0, description="That compute on a CPU, for each device; 0: half of the cores."
    )
    batch_mode: Literal["exact", "fused"] = Field(
        "exact",
        description="exact: an answer does not depend on its batch, bit for bit. "
        "fused: looks run together, one forward each step; for GPUs.",
    )
    max_batch: int = Field(32, ge=1, le=256, description="Looks that run together, if fused.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="Wait for a batch, if fused.")
    max_queue: int = Field(
        64,
        ge=1,
        description="Requests that wait or run, of one priority and above; more are refused.",
    )
    max_queue_bytes: int = Field(
        1024 * MIB, ge=1024, description="Bytes of images and masks that may wait."
    )
    max_stream_in_flight: int = Field(32, ge=1, description="Unanswered requests of a stream.")
    max_image_bytes: int = Field(
        64 * MIB,
        ge=1024,
        description="Largest image as sent: its pixels; a file may have 64 KiB beside them.",
    )
    max_image_side: int = Field(4096, ge=8, description="Longest side of an image, in pixels.")
    max_classes: int = Field(32, ge=1, le=255, description="Classes of one request.")
    max_request_pixels: int = Field(
        1 << 30, ge=1024, description="Pixels times classes times slices of one request."
    )
    feature_bytes: int = Field(2048 * MIB, ge=0, description="Image features kept in memory.")
    template_bytes: int = Field(512 * MIB, ge=0, description="Template features in memory.")
    default_top_k: int = Field(7, ge=1, le=7, description="Templates for each class.")
    encode_bank: bool = Field(
        True, description="Encode the default bank's templates at start, while nobody asks."
    )
    policy_off: str = Field(
        "", description=f"Rules to switch off, comma-separated: {', '.join(RULES)}."
    )
    grace_seconds: float = Field(20.0, ge=0, description="Time to finish requests at shutdown.")
    log_format: Literal["console", "json"] = Field("console", description="Form of the logs.")

    @field_validator("token", "weights", "adaptation", "studies", "runs_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("studies", "runs_dir")
    @classmethod
    def _is_folder(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not value.is_dir():
            kind = "scans" if info.field_name == "studies" else "training runs"
            raise ValueError(f"{value} is no folder, expected one of {kind}")
        return value and value.resolve()

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        for position, character in enumerate(text, start=1):
            if not "!" <= character <= "~":
                raise ValueError(
                    f"character {position} is not printable ASCII, which headers must be; "
                    "expected letters, digits and punctuation"
                )
        return value

    @model_validator(mode="after")
    def _one_tritonserver(self) -> Self:
        if self.runtime != "torch" and len(self.devices) > 1:
            raise ValueError(
                f"device: {self.device!r}, expected none with VESSA_RUNTIME={self.runtime}: "
                "devices are the tritonserver's"
            )
        return self

    @field_validator("policy_off")
    @classmethod
    def _known_rules(cls, value: str) -> str:
        try:
            PolicyConfig().without(_names(value))
        except VessaError as error:
            raise ValueError(error.message.removeprefix("policy_off: ")) from None
        return value

    @property
    def devices(self) -> tuple[str, ...]:
        """Each device by its name."""
        return tuple(_names(self.device)) or ("auto",)

    @property
    def origins(self) -> tuple[str, ...]:
        """Pages of other hosts that may use the scans."""
        return tuple(_names(self.studies_origins))

    def weights_folder(self) -> Path:
        """Where the weights of the preset are."""
        return self.weights or SHIPPED_WEIGHTS / self.preset

    def engine_settings(self) -> EngineSettings:
        """The part that the engine needs."""
        return EngineSettings(
            max_image_bytes=self.max_image_bytes,
            max_image_side=self.max_image_side,
            max_classes=self.max_classes,
            max_request_pixels=self.max_request_pixels,
            default_top_k=self.default_top_k,
            feature_bytes=self.feature_bytes,
            template_bytes=self.template_bytes,
            fuse=self.batch_mode == "fused",
            max_batch=self.max_batch,
            policy=PolicyConfig().without(_names(self.policy_off)),
        )


def unknown_settings() -> list[str]:
    """Variables of the environment that look like settings and are none."""
    known = {f"VESSA_{name.upper()}" for name in ServerSettings.model_fields} | NOT_THE_SERVERS
    return sorted(name for name in os.environ if name.startswith("VESSA_") and name not in known)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
