"""Everyday prompts of twelve kinds to distil a base drafter on: templates filled with words, drawn by a seed.

Prompts that an evaluation uses, or that share four of five words with one, are left out.

    python -m benchmarks.everyday.training OUT.jsonl [--per-kind 250]
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.everyday.held_out import HELD_OUT
from benchmarks.everyday.words import (
    CONCEPTS,
    GOALS,
    JOBS,
    LANGUAGES,
    PEOPLE,
    PLACES,
    SENTENCES,
    TASKS,
    THINGS,
    TOPICS,
)
from benchmarks.prompts import EvaluationPrompts
from osd.text.prompt_file import Messages

_PASSAGES = (
    "{person} grew up in {place} and became a {job} at the age of {small}. In {year} the family moved to "
    "{place2}, where they opened a small shop that sold {thing}. The shop closed in {year2}, but people "
    "in the town still speak of it.",
    "The festival in {place} takes place every year in {month}. About {large} visitors come to see shows "
    "about {topic} and {topic2}. Tickets cost {small} dollars, and children under ten enter for free.",
    "Dear team, the meeting about {topic} is moved from Monday to {day} at {hour} o'clock. {person} will "
    "present the results, and {person2} will take notes. Please bring {thing}. Lunch is provided.",
    "Researchers in {place} have studied {topic} for {small} years. They found that people who learn "
    "about {topic} early also remember more about {topic2}. The study had {large} participants and was "
    "published in {year}.",
    "The {job} {person} bought {thing} and two books about {topic} for {small} dollars in {place}. On the"
    " way home it began to rain, and the books became wet. The next {day} the shop replaced them without "
    "a charge.",
    "In {year}, a bridge was built in {place}. It is {large} metres long and carries {small} trains every"
    " hour. Before that, people crossed the river by boat. {person}, a {job}, drew the first plans.",
)

_TEMPLATES: Mapping[str, Sequence[str]] = {
    "writing": (
        *("Write a short story about {topic}.", "Write a poem about {topic}.", "Write a short essay on {topic}."),
        *("Write an email to {person} about {topic}.", "Write a blog post about a trip to {place}."),
        *("Write a product description for {thing}.", "Write a letter to a friend in {place}."),
        *(
            "Draft a speech about {topic}.",
            "Write a dialogue between a {job} and a {job2}.",
            "Write a haiku about {topic}.",
        ),
        *("Write an advertisement for {thing}.", "Write the opening paragraph of a novel set in {place}."),
        *("Compose a song about {topic}.", "Write a complaint about {thing} that arrived broken."),
        "Write a story about a {job} in {place} who finds {thing}.",
    ),
    "role play": (
        *("You are a {job} in {place}. Introduce yourself.", "Act as a {job} and explain {topic} to a child."),
        *(
            "Pretend to be {topic} and tell me about your day.",
            "Imagine you are a {job}. What is your biggest problem?",
        ),
        *("Act as a guide in {place}. Welcome your guests.", "You are a friendly {job}. Ask me about {topic}."),
        *("Play a {job} who sells {thing}.", "Act as my coach. I want to {goal}.", "You are a critic. Review {thing}."),
    ),
    "reasoning": (
        *("What are the advantages and disadvantages of {topic}?", "Why is {topic} important?"),
        *("What would the world be like without {topic}?", "Compare {topic} and {topic2}."),
        *("{person} is older than {person2}, and {person2} is older than {person3}. Who is the youngest?",),
        *("Should schools teach about {topic}? Give reasons.", "Which is more useful, {thing} or {thing2}? Why?"),
        *("If it takes {small} minutes to bake one cake, how long do {small2} cakes take in one oven?",),
        *("What are the causes and effects of {topic}?", "Do you think that a {job} needs to know about {topic}?"),
    ),
    "mathematics": (
        *(
            "What is {small}% of {large}?",
            "What is {small} times {small2}?",
            "Solve for x: {small}x + {small2} = {large}.",
        ),
        *(
            "A car drives {large} km in {small} hours. How fast is it?",
            "What is the area of a square with a side of {small} m?",
        ),
        *("{person} has {large} apples and gives away {small}. How many are left?", "Is {large} a prime number?"),
        *("What is the average of {small}, {small2} and {large}?", "Simplify the fraction {small}/{large}."),
        *("A shirt costs {large} dollars and is {small}% off. What is the new price?", "Explain what a derivative is."),
        *("What is the volume of a box of {small} by {small2} by 4 cm?", "How do I multiply two fractions?"),
        *("Explain percentages with an example.", "What is the square root of {large}?", "Explain probability simply."),
    ),
    "coding": (
        *(
            "Write a Python function that {task}.",
            "Write a Python program that {task}.",
            "How do I write code that {task}?",
        ),
        *("Write a JavaScript function that {task}.", "Explain {concept} with an example.", "What is {concept}?"),
        *(
            "Write a unit test for a function that {task}.",
            "Write a Java method that {task}.",
            "Write C code that {task}.",
        ),
        *("What is the difference between {concept} and {concept2}?", "When should I use {concept}?"),
    ),
    "extraction": (
        *("List all names in this text.\n\n{passage}", "Which places does this text name?\n\n{passage}"),
        *("Extract all numbers from this text.\n\n{passage}", "Who is named in this text?\n\n{passage}"),
        *(
            "Write the important facts of this text as a list.\n\n{passage}",
            "Which dates are in this text?\n\n{passage}",
        ),
        *("Turn this text into JSON with the keys who, where and when.\n\n{passage}",),
        *("Find the name and the job: '{person} works as a {job} in {place}.'",),
        *("Extract the price: 'We sell {thing} for {small} dollars in {place}.'",),
    ),
    "science": (
        *(
            "What is {topic}?",
            "How does {topic} work?",
            "Explain {topic} to a beginner.",
            "What do we know about {topic}?",
        ),
        *("Tell me three facts about {topic}.", "Explain the science of {topic}.", "Why does {topic} exist?"),
        *("What is the difference between {topic} and {topic2}?", "How do scientists study {topic}?"),
    ),
    "humanities": (
        *(
            "What is the history of {topic}?",
            "Tell me about the history of {place}.",
            "Why was {topic} important in history?",
        ),
        *(
            "What is the culture of {place} like?",
            "How did {topic} change society?",
            "What did people think about {topic}?",
        ),
        *("Explain the meaning of {topic} in literature.", "Who were the most important people in {place}?"),
        *("What is the role of a {job} in society?", "Describe life in {place} a hundred years ago."),
    ),
    "translation": (
        *("Translate to {language}: '{sentence}'", "How do you say '{sentence}' in {language}?"),
        *("Translate this sentence into {language}: '{sentence}'", "What is the {language} word for '{word}'?"),
        *("Teach me five {language} words about {topic}.", "Translate to {language}: 'I am a {job} from {place}.'"),
    ),
    "summarising": (
        *("Summarise this text.\n\n{passage}", "Give me the main point of this text.\n\n{passage}"),
        *("Summarise in two sentences.\n\n{passage}", "Make three bullet points of this.\n\n{passage}"),
        *("Rewrite this text in simpler words.\n\n{passage}", "Write a title for this text.\n\n{passage}"),
        *(
            "Summarise what {topic} is.",
            "Give a short overview of {topic}.",
            "Rewrite this more politely.\n\n{passage}",
        ),
    ),
    "advice": (
        *(
            "How can I {goal}?",
            "Give me five tips to {goal}.",
            "I want to {goal}. Where do I start?",
            "How do I {goal}?",
        ),
        *("What should I know before I {goal}?", "What can I do in {place} for two days?", "Make a plan to {goal}."),
        *("Recommend a gift for a {job}.", "How do I become a {job}?", "What are common mistakes when people {goal}?"),
    ),
    "retrieval": (
        *("Where does this take place? Use the text.\n\n{passage}", "Who is this about? Use the text.\n\n{passage}"),
        *("Answer from the text only: what happened?\n\n{passage}", "When was this? Use the text.\n\n{passage}"),
        *(
            "What is {place} known for?",
            "In which country is {place}?",
            "Who discovered {topic}?",
            "When was {topic} invented?",
        ),
        *(
            "How many people live in {place}?",
            "Answer from the text: what does it cost, or how long is it?\n\n{passage}",
        ),
    ),
}


def training_prompts(per_kind: int, seed: int = 0) -> list[Messages]:
    """So many prompts of each kind, shuffled; fewer where a kind has fewer that differ."""
    rng = random.Random(seed)
    evaluated = EvaluationPrompts()
    held_out = [_words(text) for texts in HELD_OUT.values() for text in texts]
    kept: list[str] = []
    for templates in _TEMPLATES.values():
        texts: dict[str, None] = {}
        for number in range(4 * per_kind):
            text = _fill(templates[number % len(templates)], rng)
            if text not in evaluated and not any(_resembles(_words(text), one) for one in held_out):
                texts[text] = None
        kept += list(texts)[:per_kind]
    rng.shuffle(kept)
    return [[{"role": "user", "content": text}] for text in kept]


def _fill(template: str, rng: random.Random) -> str:
    topics, people, jobs, places = (rng.sample(words, 3) for words in (TOPICS, PEOPLE, JOBS, PLACES))
    things, concepts = rng.sample(THINGS, 2), rng.sample(CONCEPTS, 2)
    year, small = rng.randint(1850, 1990), rng.randint(3, 40)
    words = {
        **{"topic": topics[0], "topic2": topics[1], "place": places[0], "place2": places[1], "job": jobs[0]},
        **{"job2": jobs[1], "person": people[0], "person2": people[1], "person3": people[2], "thing": things[0]},
        **{"thing2": things[1], "concept": concepts[0], "concept2": concepts[1], "year": year, "year2": year + small},
        **{"small": small, "small2": rng.randint(3, 30), "large": rng.randint(50, 900), "hour": rng.randint(8, 17)},
        **{"goal": rng.choice(GOALS), "task": rng.choice(TASKS), "sentence": rng.choice(SENTENCES)},
        **{"language": rng.choice(LANGUAGES), "word": topics[2], "day": rng.choice(("Tuesday", "Thursday", "Friday"))},
        "month": rng.choice(("March", "June", "July", "October")),
    }
    return template.format(passage=rng.choice(_PASSAGES).format(**words), **words)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _resembles(words: frozenset[str], evaluated: frozenset[str]) -> bool:
    return len(words & evaluated) >= 0.8 * len(evaluated)


def main() -> None:
    """Write the prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-kind", type=int, default=250)
    args = parser.parse_args()
    prompts = training_prompts(args.per_kind)
    args.out.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in prompts))
    print(f"{len(prompts)} prompts")


if __name__ == "__main__":
    main()
