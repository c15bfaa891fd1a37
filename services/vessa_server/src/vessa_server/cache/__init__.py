"""Cache of template features: Redis, disk, or none, behind one interface."""

from vessa_server.cache.feature_cache import FeatureCache, NoCache, cache_key
from vessa_server.cache.open import open_cache

__all__ = ["FeatureCache", "NoCache", "cache_key", "open_cache"]
