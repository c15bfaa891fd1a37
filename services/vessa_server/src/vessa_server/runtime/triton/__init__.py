"""The paper's steps on a tritonserver: what both sides speak, the model there, the client here.

One model of Triton has all steps, not one model for each: what a step leaves for the next one
(features, memories, key/value caches; hundreds of KB to many MB an image) stays in the memory of
the model's instance, and a handle names it. Stages as models of their own would send or share it
between processes at every step, and Triton would have to choose the instance that has it.

::

    FiveSteps -> client.TritonRuntime -> connection -> tritonserver -> instance.Instance
                 (a Runtime)             (gRPC)        model.py        (TorchRuntime, handles)

A request is one operation. Those that wait together (dynamic batching) run as one batch of the
runtime, unless their client wants answers that do not depend on others' (``exact``).
"""
