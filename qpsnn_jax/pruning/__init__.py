"""Scoring channels and removing them."""
