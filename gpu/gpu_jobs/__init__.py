"""What runs on the machine with a GPU: ``bash gpu/device.sh JOB``.

Nothing here needs more than what was carried; the queue itself is in ``gpu_queue``.
"""
