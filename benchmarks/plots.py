"""Plots of benchmark results."""

from __future__ import annotations

from collections.abc import Sequence
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
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
