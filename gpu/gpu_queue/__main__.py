"""``gpu/run``."""

from gpu_queue.cli import main

main()
