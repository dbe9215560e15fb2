"""Drafters: one Protocol (`osd.ports.Drafter`), several kinds."""
