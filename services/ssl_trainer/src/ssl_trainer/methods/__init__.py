"""Methods of semi-supervised training; all share data, student, optimiser, teacher, validation."""

from __future__ import annotations

from ssl_trainer.config import ConfigError, TrainConfig
from ssl_trainer.methods.bcp import BidirectionalCopyPaste
from ssl_trainer.methods.cps import CrossPseudoSupervision
from ssl_trainer.methods.mean_teacher import MeanTeacher
from ssl_trainer.methods.method import Batch, Method
from ssl_trainer.methods.unimatch.method import UniMatch
from vessa_common.processes import Processes

_METHODS: dict[str, type[Method]] = {
    "unimatch": UniMatch,
    "mean-teacher": MeanTeacher,
    "cps": CrossPseudoSupervision,
    "bcp": BidirectionalCopyPaste,
}


def build(config: TrainConfig, processes: Processes) -> Method:
    """The method that a configuration names, with new students.

    Raises:
        ConfigError: it does not train in several processes, or pretrained weights cannot be used.
    """
    if processes.world > 1 and config.method != "unimatch":
        raise ConfigError(
            f"method: {config.method} trains in one process, here are {processes.world}; start it "
            "without torchrun, with accumulate for larger batches"
        )
    return _METHODS[config.method](config, processes)


__all__ = ["Batch", "Method", "build"]
