"""The demo's table."""

from __future__ import annotations

from benchmarks.adapt import Answer, _windows
from benchmarks.adaptation.streams import Prompt


def _answer(committed: int) -> Answer:
    return Answer(
        output_tokens=committed, decode_s=1.0, rounds=4, proposed=8, accepted=4, committed=committed, drafter_version=1
    )


def test_no_row_has_queries_of_two_topics() -> None:
    """Four queries of one topic and three of another by threes; the second and sixth were decoded plainly, too."""
    prompts = [Prompt(topic, []) for topic in ("tools",) * 4 + ("code",) * 3]
    answers = [_answer(committed) for committed in (4, 5, 6, 7, 8, 9, 10)]
    controls = {number: (answers[number], _answer(4)) for number in (1, 5)}
    rows = _windows(prompts, answers, controls, 3)
    assert [(row.start, row.domain, [one.committed for one in row.window.answers]) for row in rows] == [
        (0, "tools", [4, 5, 6]),
        (3, "tools", [7]),
        (4, "code", [8, 9, 10]),
    ]
    assert [[one.committed for one in row.twin.answers] for row in rows] == [[5], [], [9]]
    assert [len(row.plain.answers) for row in rows] == [1, 0, 1]
