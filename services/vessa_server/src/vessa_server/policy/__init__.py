"""Every rule that is not in the paper, as pure functions under one typed configuration."""

from vessa_server.policy.config import POLICY_VERSION, RULES, PolicyConfig

__all__ = ["POLICY_VERSION", "RULES", "PolicyConfig"]
