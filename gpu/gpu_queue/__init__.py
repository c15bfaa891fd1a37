"""The queue of jobs for a GPU, on the machine that prepares them and collects what they bring."""
