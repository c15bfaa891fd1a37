"""What the log says of errors that nobody expected: their kind and place, and nothing else.

Messages, and the variables of frames, may hold pixels and names of patients.
"""

from __future__ import annotations

from pathlib import Path


def described(error: BaseException) -> dict[str, str]:
    """Kind of an error, and where it was raised, as fields of a line of the log."""
    return {"kind": type(error).__name__, "at": where(error)}


def where(error: BaseException) -> str:
    """File from its package on, line and function of the innermost frame; empty without one."""
    innermost = error.__traceback__
    if innermost is None:
        return ""
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    code = innermost.tb_frame.f_code
    path = Path(code.co_filename)
    module = str(innermost.tb_frame.f_globals.get("__name__", ""))
    depth = module.count(".") + (2 if path.name == "__init__.py" else 1)
    return f"{'/'.join(path.parts[-depth:])}:{innermost.tb_lineno} in {code.co_qualname}"
