"""The core: requests, engine, drafters, speculation and records, with no Ray, no HTTP, and Redis in `osd.io` only."""
