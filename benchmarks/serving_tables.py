"""Writes the tables of docs/performance.md, and its plots, from the results files.

python benchmarks/serving_tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl

from acdc import RESULTS, ROOT
from ssl_tables import Row, markdown
from vessa_client import files
from vessa_client.console import console

DOCUMENT = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "growth.png"
Facts = dict[str, Any]


def main() -> None:
    """Fill the document and draw."""
    files.write_text(DOCUMENT, filled(DOCUMENT.read_text()))
    draw()
    console.print(f"{DOCUMENT}, {PLOT}", highlight=False)


def filled(text: str) -> str:
    """The document with each of its tables as the results files have it."""
    return re.sub(
        r"(?<=<!-- table )([\w ]+)( -->\n).*?(?=<!-- end of table -->)",
        lambda found: f"{found[1]}{found[2]}{markdown(TABLES[found[1]]())}\n",
        text,
        flags=re.DOTALL,
    )


def _read(name: str) -> Facts:
    found: Facts = json.loads((RESULTS / name).read_text())
    return found


def _short(number: float) -> str:
    """Three digits, and none of them an exponent's."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _ms(figures: Facts) -> str:
    return f"{_short(figures['p50'])} ({_short(figures['p95'])})"


def latency() -> list[Row]:
    """One client, by how many cores compute."""
    both, one = (
        _latency(_read(name)["parts"])
        for name in ("serving_speed.json", "serving_speed_one_thread.json")
    )
    rows = [[name, figures, one[name]] for name, figures in both.items()]
    return [["ms, median (95 %)", "both cores", "one, the default"], *rows]


def _latency(parts: Facts) -> dict[str, str]:
    found, volume = parts["latency"], parts["latency"]["volume"]
    return {
        "new image": _ms(found["cold_ms"]),
        "known image, student's mask": _ms(found["student_mask_ms"]),
        "known image, nothing new": _ms(found["nothing_new_ms"]),
        "first image of a bank": _short(found["first_of_a_bank_ms"]["p50"]),
        "volume of 10 slices: first answer": _short(volume["first_slice_ms"]),
        "volume of 10 slices: all answers": _short(volume["all_ms"]),
        "`vessa info`": _ms(found["info_ms"]),
        "`vessa --help`": _ms(parts["start"]["help_ms"]),
        "until the server is ready": _short(1000 * parts["start"]["ready_seconds"]),
    }


def load() -> list[Row]:
    """Several clients."""
    found = _read("serving_speed.json")["parts"]["load"]
    rows = [["", "requests/s", "ms, median (95 %)"]]
    for name, figures in found.items():
        if name != "circumstances":
            rows.append([name, f"{figures['per_second']:.1f}", _ms(figures)])
    return rows


def mixed() -> list[Row]:
    """One who clicks beside one who labels a folder."""
    found = _read("serving_speed.json")["parts"]["mixed"]
    beside = found["beside a bulk labeller"]
    ratio = beside["p95"] / found["alone"]["p95"]
    return [
        ["clicks of one user", "ms, median (95 %)"],
        ["alone", _ms(found["alone"])],
        ["beside a bulk labeller", f"{_ms(beside)}: {ratio:.2f} times at 95 %"],
        ["bulk answers/s meanwhile", f"{found['bulk_per_second']:.1f}"],
    ]


def growth() -> list[Row]:
    """Larger images."""
    found = _read("serving_speed.json")["parts"]["growth"]["image"]
    rows = [["side, pixels", "new, ms", "nothing new, ms", "student's mask, ms", "resident MiB"]]
    for side, figures in found.items():
        values = (figures[k] for k in ("cold_ms", "nothing_new_ms", "student_mask_ms"))
        rows.append([side, *map(_short, values), str(figures["resident_mib"])])
    return rows


def classes() -> list[Row]:
    """More classes."""
    found = _read("serving_speed.json")["parts"]["growth"]["classes"]
    rows = [["classes", "new, ms", "student's mask, ms", "resident MiB"]]
    for count, figures in found.items():
        values = (figures[k] for k in ("cold_ms", "student_mask_ms"))
        rows.append([count, *map(_short, values), str(figures["resident_mib"])])
    return rows


def templates() -> list[Row]:
    """Larger banks."""
    found = _read("serving_speed.json")["parts"]["retrieval"]["templates"]
    rows = [["templates", "similarity, ms", "choice, ms", "index, MiB"]]
    for count, figures in found.items():
        times = (_short(figures[k]) for k in ("similarity_ms", "choice_ms"))
        rows.append([f"{int(count):,}", *times, f"{figures['index_mib']:.1f}"])
    return rows


def transport() -> list[Row]:
    """Servers beside each other."""
    found = _read("transport.json")["rows"]
    rows = [["", *[f"clients: {n}; p50, p99 ms; 1/s" for n in next(iter(found.values()))]]]
    for name, by_clients in found.items():
        cells = [
            f"{_short(f['p50_ms'])}, {_short(f['p99_ms'])}; {f['per_second']:.0f}"
            for f in by_clients.values()
        ]
        rows.append([name, *cells])
    return rows


def triton() -> list[Row]:
    """In-process and through Triton."""
    found = _read("triton_overhead.json")["milliseconds"]
    ways = list(next(iter(found.values())))
    rows = [["", *[f"{way}: p50, p99 ms" for way in ways]]]
    for name, by_way in found.items():
        times = [f"{_short(f['p50_ms'])}, {_short(f['p99_ms'])}" for f in by_way.values()]
        rows.append([name, *times])
    return rows


def training() -> list[Row]:
    """A training beside its server."""
    found = _read("shared_cores.json")
    rows = [["threads of the server", "of the training", f"seconds of {found['updates']} updates"]]
    for row in found["training"]:
        rows.append([str(row["server"]), str(row["trainer"]), f"{row['seconds']:.0f}"])
    return rows


def spinning() -> list[Row]:
    """A student's mask, alone and beside busy programs."""
    by_spins: dict[int, dict[int, str]] = {}
    for row in _read("shared_cores.json")["spinning"]:
        by_spins.setdefault(row["spins"], {})[row["busy"]] = _ms(row)
    rows = [["`GOMP_SPINCOUNT`", "alone, ms (95 %)", "beside two busy programs, ms (95 %)"]]
    for spins, by_busy in by_spins.items():
        rows.append([f"{spins:,}", *(text for _, text in sorted(by_busy.items()))])
    return rows


def updates() -> list[Row]:
    """What a student's update takes, by processor and arithmetic."""
    rows = [["processor", "arithmetic", "ms of an update", "minutes of 2,500", "times faster"]]
    for machine, found in _read("ssl_speed.json").items():
        for kind, row in found["updates"].items():
            ratios = row.get("times_faster")
            faster = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "–"
            minutes = f"{row['training_minutes']:.1f}"
            rows.append([machine, kind, _short(row["now_ms"]), minutes, faster])
    return rows


TABLES: dict[str, Callable[[], list[Row]]] = {
    "latency": latency,
    "load": load,
    "mixed": mixed,
    "growth": growth,
    "classes": classes,
    "templates": templates,
    "transport": transport,
    "triton": triton,
    "training": training,
    "spinning": spinning,
    "updates": updates,
}


def draw() -> None:
    """Time over the size of images, classes and banks."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts = _read("serving_speed.json")["parts"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    kinds = {"cold_ms": "new image", "student_mask_ms": "student's mask", "nothing_new_ms": "again"}
    for axis, name, label in (
        (axes[0], "image", "side of the image, pixels"),
        (axes[1], "classes", "classes"),
    ):
        found = parts["growth"][name]
        for key, title in kinds.items():
            points = [(int(x), f[key]) for x, f in found.items() if key in f]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=title)
        axis.set(xlabel=label, ylabel="ms", xscale="log", yscale="log")
        axis.set_xticks([int(x) for x in found], list(found))
        axis.minorticks_off()
        axis.legend()
    found = parts["retrieval"]["templates"]
    for key, title in (("similarity_ms", "similarity"), ("choice_ms", "choice")):
        axes[2].plot([int(x) for x in found], [f[key] for f in found.values()], "o-", label=title)
    axes[2].set(xlabel="templates", ylabel="ms", xscale="log", yscale="log")
    axes[2].legend()
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
