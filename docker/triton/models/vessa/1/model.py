"""The paper's steps as a model of Triton: its tensors, to and from the project's Instance."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from vessa_server.runtime.triton.messages import NAMES, MessageError


class TritonPythonModel:
    """One instance, which has what its clients' handles name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read weights, and run every step once: who is ready is warm.

        Triton's own model_warmup cannot do that: a step needs the handles of the one before.
        """
        config = json.loads(args["model_config"])
        _check_alone(config)
        # They take seconds, and a wrong configuration should not.
        import torch

        from vessa_server.api.settings import ServerSettings
        from vessa_server.runtime.loading import load_runtime, stored_config
        from vessa_server.runtime.triton.instance import Instance
        from vessa_server.runtime.warm_up import warm_up

        settings = ServerSettings.model_validate(_given(config))
        if settings.threads:
            torch.set_num_threads(settings.threads)
        on_gpu = args["model_instance_kind"] == "GPU"
        folder = settings.weights_folder()
        runtime = load_runtime(
            stored_config(folder),
            folder,
            adaptation=settings.adaptation,
            device=f"cuda:{args['model_instance_device_id']}" if on_gpu else settings.device,
            dtype=settings.dtype,
            max_batch=settings.max_batch,
        )
        seconds = sum(warm_up(runtime).values()) / 1000
        self.instance = Instance(runtime, settings.feature_bytes)
        info = runtime.info
        pb_utils.Logger.log_info(
            f"{args['model_name']}: {info.model_name} {info.model_digest[:12]} on {info.device}, "
            f"{info.dtype}, warm after {seconds:.1f} s, keeps {settings.feature_bytes >> 20} MiB"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer what Triton put into one batch."""
        gone = [request.is_cancelled() for request in requests]
        wanted = [_read(r) for r, cancelled in zip(requests, gone, strict=True) if not cancelled]
        answers = iter(self.instance.answer(wanted))
        return [_cancelled() if cancelled else _response(next(answers)) for cancelled in gone]


def _given(config: dict[str, Any]) -> dict[str, str]:
    """The model's parameters, which are named like the server's settings; VESSA_* wins."""
    values = {name: value["string_value"] for name, value in config["parameters"].items()}
    return {n: v for n, v in values.items() if v and f"VESSA_{n.upper()}" not in os.environ}


def _check_alone(config: dict[str, Any]) -> None:
    """Refuse to share handles: only the instance that gave one has what it names."""
    groups = config["instance_group"]
    instances = sum(group["count"] * max(1, len(group["gpus"])) for group in groups)
    if instances != 1:
        raise pb_utils.TritonModelException(
            f"instance_group: {instances} instances, expected 1: features stay in one of them. "
            "For another GPU copy the model's folder, and serve it as another model"
        )


def _read(request: Any) -> dict[str, Any]:
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in NAMES}
    return {name: t.as_numpy() for name, t in tensors.items() if t is not None}


def _cancelled() -> Any:
    return _error("the client has gone", "CANCELLED")


def _response(answer: Any) -> Any:
    if isinstance(answer, MessageError):
        return _error(str(answer), "INVALID_ARG")
    if isinstance(answer, Exception):
        pb_utils.Logger.log_error("".join(traceback.format_exception(answer)))
        return _error(f"internal error: {type(answer).__name__}", "INTERNAL")
    return pb_utils.InferenceResponse([pb_utils.Tensor(n, array) for n, array in answer.items()])


def _error(text: str, code: str) -> Any:
    error = pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(error=error)
