"""The options of `osd serve`, made of the settings, and what becomes of those that users of vLLM give."""
