"""Engines of many models, built on a machine that needs no GPU: what ``singlecard build`` does."""
