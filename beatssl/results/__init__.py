"""Saved predictions and rows, intervals and tests."""
