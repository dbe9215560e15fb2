"""OpenAI's Responses API: requests, answers, events and the store of past responses."""
