"""Where bf16 is fast, what ``precision`` makes of it, and what stays in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_common import precision
from vessa_server.model import precision as of_vessa

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Context = Callable[..., torch.autocast]


def _forget() -> None:
    precision._cpu_flags.cache_clear()
    precision._warn_of_emulation.cache_clear()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    _forget()
    yield
    _forget()


@pytest.fixture(params=[precision.autocast, of_vessa.autocast], ids=["students", "vessa"])
def context(request: pytest.FixtureRequest) -> Context:
    found: Context = request.param
    return found


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the CPU these flags."""

    def give(words: str) -> None:
        file = tmp_path / "cpuinfo"
        file.write_text(f"processor : 0\nflags\t\t: fpu sse2 {words}\nprocessor : 1\nflags : x\n")
        monkeypatch.setattr(precision, "CPU_INFO", file)

    return give


@pytest.mark.parametrize(
    ("words", "native"),
    [
        ("avx2", False),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx512f avx512_bf16", True),
        ("avx2 avx512f amx_tile amx_bf16", True),
    ],
)
def test_auto_is_bf16_on_cpus_that_have_it(
    context: Context, flags: Callable[[str], None], words: str, native: bool
) -> None:
    flags(words)
    assert precision.bf16_is_native(CPU) == native
    with context(CPU, "auto"):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == (
            torch.bfloat16 if native else torch.float32
        )
    with context(CPU, "fp32"):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_cpu_without_readable_flags_has_no_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "nothing")
    assert not precision.bf16_is_native(CPU)


@pytest.mark.parametrize("supported", [False, True])
def test_a_gpu_that_emulates_bf16_has_none(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: supported or including_emulation,
    )
    assert precision.bf16_is_native(CUDA) == supported


def test_emulated_bf16_is_computed_as_wished_with_one_warning(
    context: Context, flags: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    flags("avx2")
    for _ in range(3):
        with context(CPU, "bf16"):
            assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "15 times" in caplog.text


def test_native_bf16_and_auto_do_not_warn(
    context: Context, flags: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    for words, wanted in (("avx512_bf16", "bf16"), ("avx512_bf16", "auto")):
        flags(words)
        with context(CPU, wanted):
            pass
    assert not caplog.records


def test_full_precision_is_fp32_inside_autocast_only() -> None:
    @of_vessa.in_full_precision
    def product(one: Tensor, other: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * (one @ other)

    one, other = torch.rand(4, 4), torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(one, other=other, scale=2.0), product(one, other, scale=2.0))
        assert product(one.bfloat16(), other).dtype == torch.float32
        assert (one @ other).dtype == torch.bfloat16
        inside = product(one, other)
    assert torch.equal(inside, one @ other)
    assert product(one.double(), other.double()).dtype == torch.float64


def test_attention_of_a_cpu_is_in_fp32_within_bf16() -> None:
    query, key, value = (torch.rand(1, 2, 8, 16, requires_grad=True) for _ in range(3))
    with of_vessa.autocast(CPU, "bf16"):
        out = F.scaled_dot_product_attention(query, key.bfloat16(), value)
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
    assert out.dtype == torch.float32
    out.sum().backward()
    assert query.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.scaled_dot_product_attention(query, key, value).dtype == torch.bfloat16
