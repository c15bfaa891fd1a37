"""Records of tensors that can be selected, joined and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorRecord:
    """A record of tensors with a common first axis, which can be stacked, split and stored."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Field names and tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def nbytes(self) -> int:
        """Bytes of all fields."""
        return sum(tensor.nbytes for tensor in self.to_tensors().values())

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """Inverse of :meth:`to_tensors`.

        Raises:
            KeyError: a field is missing.
        """
        values: dict[str, Any] = {f.name: tensors[f.name] for f in fields(cls)}
        return cls(**values)

    def select(self, index: Tensor) -> Self:
        """Rows ``index`` of every field."""
        return type(self)(**{name: value[index] for name, value in self.to_tensors().items()})

    def compact(self) -> Self:
        """The same without memory that belongs to something larger, so that ``nbytes`` is true."""
        return type(self)(
            **{
                name: value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
                for name, value in self.to_tensors().items()
            }
        )

    def split(self, counts: Sequence[int]) -> list[Self]:
        """Consecutive rows, as many as each of ``counts`` says; views."""
        columns = {name: value.split(list(counts)) for name, value in self.to_tensors().items()}
        return [
            type(self)(**{name: parts[i] for name, parts in columns.items()})
            for i in range(len(counts))
        ]

    @classmethod
    def concatenate(cls, records: list[Self]) -> Self:
        """Join records along the first axis."""
        if len(records) == 1:
            return records[0]
        names = [f.name for f in fields(cls)]
        return cls(**{name: torch.cat([getattr(r, name) for r in records]) for name in names})
