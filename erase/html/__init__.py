"""Pieces that pages are made of: markup, plots, numbers, words, style and script."""
