"""Drafters: one Protocol (`osd.protocols.Drafter`), several kinds."""
