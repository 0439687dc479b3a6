"""Calibration for singlecard. This version has none yet: the package is empty."""
