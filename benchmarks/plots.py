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


def plot_arms(path: Path, lengths: Mapping[str, Sequence[float]], domains: Sequence[str], window: int) -> None:
    """Acceptance length against queries, one line an arm, with the places marked where the domain changes for long.

    Args:
        path: the PNG to write.
        lengths: by arm, the running acceptance length after each query.
        domains: of each query.
        window: queries in the running figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for arm, running in lengths.items():
        axes.plot(range(1, len(running) + 1), running, label=arm)
    starts = [number for number in range(len(domains)) if number == 0 or domains[number] != domains[number - 1]]
    if len(starts) <= len(domains) // window:  # else the domains are mixed
        for start in starts:
            axes.axvline(start + 1, color="#999999", linewidth=0.7, linestyle=":")
            axes.annotate(domains[start], (start + 1, 1.0), fontsize=7, rotation=90, color="#666666")
    axes.set_xlabel("queries")
    axes.set_ylabel(f"acceptance length over the last {window} queries")
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
