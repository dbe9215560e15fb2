"""Everyday questions that drafters are judged by and never trained on, by kind.

Written for osd by hand; `benchmarks.everyday.training` leaves out what resembles them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_PASSAGE = (
    "The old lighthouse on Harrow Point was built in 1871 after three ships were lost in one winter. Its keeper, Edith "
    "Lowe, lit the lamp every evening for thirty-one years. In 1962 the lamp became electric, and today the tower is a "
    "small museum that opens on weekends from May to September."
)

HELD_OUT: Mapping[str, Sequence[str]] = {
    "writing": (
        "Write a short story about a clockmaker who can stop time.",
        "Write an email to my landlord asking to repair the heating.",
        "Write a poem about the first snow of the year.",
        "Compose a blog post about a weekend in Lisbon.",
        "Write a product description for a waterproof backpack.",
        "Draft a thank-you note to a teacher.",
    ),
    "role play": (
        "Pretend you are a pirate captain and tell me about your ship.",
        "You are a travel guide in Rome. Greet your group.",
        "Act as a job interviewer for a nurse's position and ask me questions.",
        "Imagine you are an old oak tree. What have you seen?",
        "Play the role of a sleepy dragon who guards a library.",
        "You are a chef on television. Introduce tonight's dish.",
    ),
    "reasoning": (
        "If all roses are flowers and some flowers fade quickly, do all roses fade quickly?",
        "Tom is taller than Ann, and Ann is taller than Ben. Who is the shortest?",
        "What would happen if the Earth stopped spinning?",
        "Is it better to rent or to buy a house? Explain both sides.",
        "A farmer has to cross a river with a wolf, a goat and a cabbage. How can he do it?",
        "Why do people often agree with the majority even when it is wrong?",
    ),
    "mathematics": (
        "What is 15% of 240?",
        "Solve for x: 3x + 7 = 22.",
        "A train travels 180 km in 2.5 hours. What is its average speed?",
        "Explain the Pythagorean theorem with an example.",
        "What is the area of a circle with a radius of 6 cm?",
        "How do I add two fractions with different denominators?",
    ),
    "coding": (
        "Write a Python function that reverses a string.",
        "How do I read a CSV file in Python?",
        "What is the difference between a list and a tuple in Python?",
        "Write a SQL query that counts orders by customer.",
        "Explain recursion with a short example.",
        "Write JavaScript code to check whether a number is prime.",
    ),
    "extraction": (
        f"List all years that are named in this text.\n\n{_PASSAGE}",
        "Extract the name and the phone number: 'Please call Maria Jensen at 555-0147 after noon.'",
        "Which products are mentioned? 'I bought two lamps, a desk and a chair yesterday.'",
        f"Who is the person in this text, and what was her work?\n\n{_PASSAGE}",
        "Turn this into JSON with the keys name, age and city: Paul is 34 years old and lives in Ghent.",
        "Find the email address: 'You can write to support@example.org or visit our office.'",
    ),
    "science": (
        "Why is the sky blue?",
        "How do vaccines work?",
        "What is photosynthesis?",
        "Why do leaves change colour in autumn?",
        "What is the difference between weather and climate?",
        "How does a battery store energy?",
    ),
    "humanities": (
        "Who was Cleopatra?",
        "What caused the First World War?",
        "Explain the main idea of Stoicism.",
        "What is the theme of Romeo and Juliet?",
        "How did the printing press change Europe?",
        "What is the difference between a democracy and a republic?",
    ),
    "translation": (
        "Translate to French: 'Where is the train station?'",
        "How do you say 'good morning' in Spanish?",
        "Translate this sentence to German: 'I would like a cup of coffee.'",
        "What does 'carpe diem' mean in English?",
        "Translate to Italian: 'The weather is beautiful today.'",
        "Translate into English: 'Je voudrais réserver une table pour deux.'",
    ),
    "summarising": (
        f"Summarise this text in one sentence.\n\n{_PASSAGE}",
        f"Give me three bullet points of this text.\n\n{_PASSAGE}",
        "Summarise the plot of Cinderella.",
        f"Rewrite this text for children.\n\n{_PASSAGE}",
        "Summarise the benefits of regular exercise.",
        "Give a short summary of how a bill becomes a law.",
    ),
    "advice": (
        "Give me three tips for staying healthy.",
        "How can I sleep better?",
        "What should I pack for a hiking trip?",
        "How do I prepare for a job interview?",
        "What can I cook with eggs and potatoes?",
        "How can I save money every month?",
    ),
    "retrieval": (
        f"Answer from the text only: when does the museum open?\n\n{_PASSAGE}",
        f"Answer from the text only: why was the lighthouse built?\n\n{_PASSAGE}",
        f"How long did the keeper light the lamp? Use the text.\n\n{_PASSAGE}",
        "What is the capital of Australia?",
        "Which planet is the largest in the solar system?",
        "Who wrote 'Pride and Prejudice'?",
    ),
}
"""Six of each of twelve kinds."""
