"""Converters, one file per op family."""
