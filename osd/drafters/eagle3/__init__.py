"""EAGLE-3 heads in the files that SpecForge, speculators, vLLM and SGLang share: reading and writing them."""
