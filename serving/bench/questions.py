"""Questions to ask a server when no file of prompts is given."""

QUESTIONS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Explain in two sentences why the sky is blue.",
    "Translate into French: The train to Lyon leaves at eight.",
    "List five uses for an old newspaper.",
    "What is the difference between a list and a tuple in Python?",
    "Write an SQL query that counts the orders of each customer in 2024.",
    "Summarise the plot of Romeo and Juliet.",
    "A shop sells pens at 3 for 2 euros. What do 12 pens cost? Explain each step.",
    "Write a short, polite e-mail that declines an invitation to a meeting.",
    "Name the planets of the solar system from the Sun outwards.",
    "Write a regular expression that matches an ISO date such as 2024-05-17.",
    "Give a recipe for pancakes for two.",
    "What does the HTTP status 503 mean, and what should a client do?",
    "Write a haiku about the sea.",
    "Turn this into JSON: Ann is 31 and lives in Oslo; Ben is 27 and lives in Bonn.",
    "Describe how a binary search works.",
)
