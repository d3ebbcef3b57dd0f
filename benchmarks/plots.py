"""Plots as PNG files, with matplotlib; ours is always the strong line among grey ones."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "#c2410c"
OTHERS = ("#2563eb", "#059669", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#64748b", "#a16207")
SHADE = "#fde68a"
SIZE_INCHES = (9.0, 4.8)
DPI = 90


def have_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def figure(rows: int = 1, columns: int = 1, size_inches: tuple[float, float] = SIZE_INCHES) -> Any:
    """A figure and its axes, drawn without a screen."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    return pyplot.subplots(rows, columns, figsize=size_inches, layout="constrained", squeeze=False)


def save(drawing: Any, path: Path) -> None:
    drawing.savefig(path, dpi=DPI)
    importlib.import_module("matplotlib.pyplot").close(drawing)


def colours(names: Sequence[str]) -> dict[str, str]:
    """Ours for the first name that begins with "offhook", one of the others for each other."""
    others = [name for name in names if not name.startswith("offhook")]
    return {
        name: OURS if name.startswith("offhook") else OTHERS[others.index(name) % len(OTHERS)]
        for name in names
    }


def latency_cdf(samples_ms: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Which share of samples is at most how late, on a logarithmic axis of milliseconds."""
    drawing, ((axes,),) = figure()
    colour = colours(list(samples_ms))
    for name, samples in samples_ms.items():
        ordered = sorted(samples)
        share = [(i + 1) / len(ordered) for i in range(len(ordered))]
        axes.step(
            [ordered[0], *ordered],
            [0, *share],
            where="post",
            label=name,
            color=colour[name],
            linewidth=2.6 if name.startswith("offhook") else 1.4,
            zorder=3 if name.startswith("offhook") else 2,
        )
    axes.set_xscale("log")
    axes.set(xlabel="milliseconds", ylabel="share", title=title, ylim=(0, 1.02))
    axes.grid(which="both", alpha=0.25)
    drawing.legend(fontsize=8, ncols=4, loc="outside lower center")
    save(drawing, path)


def bars(values: Mapping[str, float], axes: Any, unit: str, title: str) -> None:
    """One horizontal bar for each name, the smallest on top, on a logarithmic axis."""
    names = sorted(values, key=lambda name: -values[name])
    drawn = axes.barh(
        names,
        [values[name] for name in names],
        color=[OURS if name.startswith("offhook") else "#cbd5e1" for name in names],
    )
    axes.bar_label(drawn, fmt=" %.3g", fontsize=8)
    axes.set_xscale("log")
    axes.set(xlabel=unit, title=title)
    axes.margins(x=0.2)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
