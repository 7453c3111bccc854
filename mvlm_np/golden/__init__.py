"""Goldens: every stage of one run on record, and whether another implementation computes the same."""
