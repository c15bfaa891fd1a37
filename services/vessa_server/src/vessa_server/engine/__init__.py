"""The core that both transports and in-process users call."""

from vessa_server.engine.engine import EngineSettings, VessaEngine

__all__ = ["EngineSettings", "VessaEngine"]
