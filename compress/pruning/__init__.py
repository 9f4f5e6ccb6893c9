"""Structured reduction: what can only leave together, how much of it goes, and the smaller model."""
