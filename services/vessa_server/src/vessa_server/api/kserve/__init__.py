"""The Open Inference Protocol (KServe v2): the same service for its clients."""
