"""Proof that a concept is gone and the rest is not: rows to draw, pictures, records, metrics with intervals."""
