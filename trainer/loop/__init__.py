"""The online trainer: when it trains, how fast, and what it keeps over a restart."""
