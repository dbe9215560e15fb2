"""Plots of benchmark results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_adaptation(path: Path, queries: Sequence[tuple[int, int, int]], window: int) -> None:
    """Acceptance length against queries, with the swaps marked.

    Args:
        path: the PNG to write.
        queries: (drafter version, committed, rounds) of each query, in order.
        window: queries in the running figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lengths = []
    for end in range(1, len(queries) + 1):
        recent = queries[max(0, end - window) : end]
        lengths.append(sum(q[1] for q in recent) / max(sum(q[2] for q in recent), 1))
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    axes.plot(range(1, len(lengths) + 1), lengths, color="#2a6fdb", label=f"over the last {window} queries")
    newest = 0
    for number, (version, _, _) in enumerate(queries, start=1):
        if version > newest:
            axes.axvline(number, color="#999999", linewidth=0.7, linestyle=":")
            axes.annotate(f"v{version}", (number, 1.0), fontsize=6, rotation=90, color="#666666")
            newest = version
    axes.axhline(1.0, color="#444444", linewidth=0.8)
    axes.set_xlabel("queries")
    axes.set_ylabel("acceptance length (committed / rounds)")
    axes.set_title("A drafter learning from the traffic it serves (dotted: hot swaps)")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_speeds(path: Path, speeds: Mapping[int, Mapping[str, float]]) -> None:
    """Tokens per second by contender, one group of bars per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(speeds), figsize=(4.5 * len(speeds), 4), layout="constrained", squeeze=False)
    for axes, (batch, by_name) in zip(panels[0], speeds.items(), strict=True):
        colours = ["#2a6fdb" if name.startswith("osd") else "#b0b0b0" for name in by_name]
        bars = axes.barh(list(by_name), list(by_name.values()), color=colours)
        axes.margins(x=0.12)  # room for the longest bar's number
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(f"batch {batch}")
        axes.set_xlabel("tokens/s")
    figure.savefig(path, dpi=130)
    plt.close(figure)
