"""One file that runs a model without its source: written by ``export``, read by ``load``."""
