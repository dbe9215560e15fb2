"""Detects lasting changes of acceptance, by domain. Numbers in, decisions out."""
