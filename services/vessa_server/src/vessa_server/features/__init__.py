"""Features of templates and images: in memory, bounded by bytes, and in the cache behind it."""
