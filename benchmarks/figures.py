"""Turns the benchmarks' results into tables: one per comparison, one row per measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Report: TypeAlias = dict[str, Any]

_PEERS = {
    "osd plain": "osd, plain",
    "generate": "transformers `generate`",
    "assisted": "its assisted generation",
    "prompt lookup": "its prompt lookup",
    "continuous batching": "its continuous batching",
    "llama.cpp": "llama.cpp, the GGUF file's weights",
    "llama.cpp bf16": "llama.cpp, bfloat16",
}
_VARIANTS = {
    "osd untrained": ("an untrained drafter", "osd plain"),
    "osd block verification": ("block verification", "osd speculative"),
    "osd model drafter": ("a small LM as drafter", "osd plain"),
    "osd plain int4": ("plain, layers in int4", "llama.cpp"),
    "osd speculative int4": ("layers in int4", "llama.cpp"),
}


@dataclass(frozen=True, slots=True)
class Table:
    """One table, without its last column, which says where each row was measured."""

    title: str
    header: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Report]]
    """(cells, the report that they come from) for each row."""


_Make: TypeAlias = Callable[[Sequence[Report]], Table]


def tables(reports: Sequence[Report]) -> Iterator[Table]:
    """All tables that the reports yield, in the page's order; none is empty."""
    return _filled(_TABLES, reports)


def headlines(reports: Sequence[Report]) -> Iterator[Table]:
    """The tables of what a newcomer asks first: greedy decoding beside its peers, learning, and speed over HTTP."""
    return _filled(_HEADLINES, [report for report in reports if _is_headline(report)])


def _filled(makers: Sequence[tuple[str, _Make]], reports: Sequence[Report]) -> Iterator[Table]:
    """The tables of these makers that are not empty."""
    for benchmark, make in makers:
        own = [report for report in reports if report["benchmark"] == benchmark]
        if own and (table := make(own)).rows:
            yield table


def _is_headline(report: Report) -> bool:
    """Of decoding only greedy runs with the shipped drafter beside transformers."""
    if report["benchmark"] != "decode":
        return True
    beside = any("generate" in at["tokens_per_s"] for at in report["batches"].values())
    return beside and not report.get("sampled") and not report.get("skip")


def _side_by_side(reports: Sequence[Report]) -> Table:
    """Speculative beside plain decoding and peers: each peer's speed, and osd's as a multiple of it."""
    found = {name for report in reports for at in report["batches"].values() for name in at["tokens_per_s"]}
    peers = [name for name in _PEERS if name in found]
    rows = []
    for report, batch, at in _batches(reports):
        speeds = at["tokens_per_s"]
        own = speeds.get("osd speculative")
        if own is None or len(speeds) == 1:
            continue
        told = f"{own:.1f} (acceptance length {at['acceptance_length']['osd speculative']:.2f})"
        beside = [f"{speeds[peer]:.1f} ({own / speeds[peer]:.2f}x)" if peer in speeds else "" for peer in peers]
        rows.append(([f"{report['target']}, {_queries(batch)}, {_manner(report)}", told, *beside], report))
    return Table("Decoding, tokens/s (osd / beside it)", ["what", "osd", *(_PEERS[peer] for peer in peers)], rows)


def _variants(reports: Sequence[Report]) -> Table:
    """Other drafters and other weights, each beside its baseline."""
    rows = []
    for report, batch, at in _batches(reports):
        for name, (told, peer) in _VARIANTS.items():
            speeds = at["tokens_per_s"]
            if name in speeds and peer in speeds:
                what = f"{_queries(batch)}, {_manner(report)}: {told}"
                beside = f"{_PEERS.get(peer, peer)}: {speeds[peer]:.1f}"
                rows.append(([what, f"{speeds[name]:.1f}", beside, f"{speeds[name] / speeds[peer]:.2f}"], report))
    return Table("Other drafters and weights, tokens/s", ["what", "osd", "beside it", "osd / beside it"], rows)


def _acceptance(reports: Sequence[Report]) -> Table:
    """Acceptance length by source of the prompts."""
    found = [
        (report, batch, at["acceptance_length_by_source"]["osd speculative"])
        for report, batch, at in _batches(reports)
        if batch == "1" and "osd speculative" in at.get("acceptance_length_by_source", {})
    ]
    sources = list(dict.fromkeys(source for _, _, lengths in found for source in lengths))
    rows = [
        ([_manner(report), *(f"{lengths[source]:.2f}" if source in lengths else "" for source in sources)], report)
        for report, _, lengths in found
    ]
    return Table("Acceptance length, by where the prompts are from", ["what", *sources], rows)


def _adapt(reports: Sequence[Report]) -> Table:
    """The demo: the first and the last window of queries, and the last prompts asked again."""
    rows = []
    for report in reports:
        size, windows = report["window"], report["windows"]
        start = " from the shipped drafter on" if report.get("pretrained") else ""
        for label, window in (("first", windows[0]), ("last", windows[-1])):
            what = f"{label} {size} of {report['queries']} queries{start}"
            length, ratio = f"{window['acceptance_length']:.2f}", f"{window['speculative_vs_plain']:.2f}"
            rows.append(([what, f"{window['tokens_per_s']:.1f}", "", length, ratio], report))
        for training, told in (("on", "the trainer has a core"), ("off", "no training, all cores serve")):
            if run := report.get("closing", {}).get(training):
                own, plain = (f"{run[f'{way}_tokens_per_s']:.1f}" for way in ("speculative", "plain"))
                what = f"the last {size} prompts again, {told}"
                rows.append(([what, own, plain, "", f"{run['speculative_vs_plain']:.2f}"], report))
    header = ["what", "osd, tokens/s", "plain, tokens/s", "acceptance length", "osd / plain"]
    return Table("Learning from traffic", header, rows)


def _serve(reports: Sequence[Report]) -> Table:
    """Speculative beside plain serving, under each load."""
    rows = []
    for report in reports:
        plain = report["servers"].get("osd plain", {})
        for load, own in report["servers"].get("osd speculative", {}).items():
            if theirs := plain.get(load):
                both = (own, theirs)
                ratio = f"{own['tokens_per_s'] / theirs['tokens_per_s']:.2f}" if theirs["tokens_per_s"] else ""
                speeds = [f"{one['tokens_per_s']:.1f}" for one in both]
                rows.append(([load, *speeds, ratio, *(f"{one['ttft_p50_ms']:.0f} ms" for one in both)], report))
    header = ["load", "osd, tokens/s", "plain", "osd / plain", "first token, osd (median)", "plain"]
    return Table("Over HTTP", header, rows)


def _conversation(reports: Sequence[Report]) -> Table:
    """A conversation's last turn, beside each other server."""
    rows = []
    for report in reports:
        for load, turns in report["servers"]["osd"].items():
            own = turns[-1]
            prompt = f"{own['prompt_tokens']} tokens, of which {own['cached_tokens']} were read before"
            for server, loads in report["servers"].items():
                if server != "osd":
                    other = loads[load][-1]["ttft_p50_ms"]
                    times = f"{own['ttft_p50_ms']:.0f} ms", server, f"{other:.0f} ms"
                    rows.append(
                        ([f"{load}, turn {len(turns)}: {prompt}", *times, f"{other / own['ttft_p50_ms']:.2f}"], report)
                    )
    header = ["load", "first token, osd (median)", "beside it", "its first token", "its / osd's"]
    return Table("Conversations", header, rows)


def _training_cost(reports: Sequence[Report]) -> Table:
    """Time per token with and without training beside serving."""
    rows = []
    for report in reports:
        for load, at in report["loads"].items():
            told = [
                f"{tpot['training']:.1f} / {tpot['paused']:.1f} ms = {tpot['ratio']:.2f}"
                for tpot in (at["tpot_p50_ms"], at["tpot_p95_ms"])
            ]
            speeds = at.get("tokens_per_s")
            speed = f"{speeds['training']:.1f} / {speeds['paused']:.1f} = {speeds['ratio']:.2f}" if speeds else ""
            rows.append(([load, str(at["steps"]), *told, speed], report))
    header = ["load", "steps trained", "median", "95th percentile", "tokens/s"]
    return Table("A token's time beside training / with training paused", header, rows)


def _swap(reports: Sequence[Report]) -> Table:
    """A swap's duration in steps, and the longest step while the version was prepared."""
    rows = []
    for report in reports:
        for at in report["rows"]:
            times = [f"{at[name]:.1f} ms" for name in ("step_ms", "swap_ms")]
            longest = f"{at['longest_step_ms']:.1f} ms"
            rows.append(([_queries(at["rows"]), *times, f"{at['steps']:.2f}", longest], report))
    header = ["at once", "a step", "swap", "steps it stalls", "longest step while it is prepared"]
    return Table("Hot swap", header, rows)


def _shapes(reports: Sequence[Report]) -> Table:
    """Speed by shape of the model; the row says that the acceptance was set, not learnt."""
    peers = ("plain", "generate", "assisted")
    rows = []
    for report in reports:
        drafter = f"a small LM ({report['small_lm']}) as drafter, " if report["drafter"] == "model" else ""
        for batch, at in report["batches"].items():
            own = at["speculative_tokens_per_s"]
            speeds = [at[f"{peer}_tokens_per_s"] for peer in peers]
            beside = ["" if speed is None else f"{speed:.1f} ({own / speed:.2f}x)" for speed in speeds]
            what = f"{report['shape']}, random {report['dtype']} weights, {drafter}{_queries(batch)}"
            told = f"{own:.1f} (acceptance set to {report['acceptance_asked']:g})"
            read = at["weight_bytes_per_s"]
            rate = f"{read / 1e9:,.0f} GB/s = {read / report['copy_bytes_per_s']:.2f}"
            rows.append(([what, told, *beside, rate], report))
    header = [
        "what",
        "osd, tokens/s",
        "plain",
        _PEERS["generate"],
        _PEERS["assisted"],
        "plain reads weights at, of a copy's rate",
    ]
    return Table("By a model's shape", header, rows)


def _shared_device(reports: Sequence[Report]) -> Table:
    """Training's cost without Ray, Redis and HTTP, also for training that never yields."""
    rows = []
    for report in reports:
        loads = {"closed": "one query at a time", "open": f"queries by chance, {report['busy_asked']:.0%} busy"}
        modes = {
            "yielding": f"training while the engine is less than {report['max_utilisation']:.0%} busy",
            "always": "training always",
        }
        for load, by_mode in report["loads"].items():
            for mode, told in modes.items():
                at, paused = by_mode[mode], by_mode["paused"]
                figures = [
                    f"{at[f'tpot_{p}_ms']:.2f} / {paused[f'tpot_{p}_ms']:.2f} ms = {at[f'tpot_{p}_ratio']:.2f}"
                    for p in ("p50", "p95")
                ]
                what = f"{report['shape']}, random {report['dtype']} weights, {loads[load]}, {told}"
                rows.append(([what, f"{at['trained_tokens_per_s']:.0f}", *figures], report))
    header = ["what", "tokens trained/s", "median", "95th percentile"]
    return Table("A token's time beside training on the same device / with training paused", header, rows)


_TABLES: tuple[tuple[str, _Make], ...] = (
    ("decode", _side_by_side),
    ("decode", _variants),
    ("decode", _acceptance),
    ("adapt", _adapt),
    ("serve", _serve),
    ("conversation", _conversation),
    ("shapes", _shapes),
    ("training_cost", _training_cost),
    ("shared_device", _shared_device),
    ("swap", _swap),
)
_HEADLINES: tuple[tuple[str, _Make], ...] = (("decode", _side_by_side), ("adapt", _adapt), ("serve", _serve))


def _batches(reports: Sequence[Report]) -> list[tuple[Report, str, Report]]:
    """(report, batch size, section) for greedy, sampled and adapted runs; small batches first."""
    found = [(report, batch, at) for report in reports for batch, at in report["batches"].items()]
    return sorted(found, key=lambda one: (one[0].get("skip", 0), bool(one[0].get("sampled")), int(one[1])))


def _manner(report: Report) -> str:
    manner = "sampled" if report.get("sampled") else "greedy"
    if report.get("skip"):
        manner += f", {' and '.join(report['sources'])} after adapting to {report['skip']} other prompts of it"
    if report.get("speculation_length") is not None:
        manner += f", always {report['speculation_length']} proposed"
    return manner


def _queries(number: int | str) -> str:
    return "1 query" if int(number) == 1 else f"{number} queries"
