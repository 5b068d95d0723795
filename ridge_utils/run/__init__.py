"""The command line, and sweeps over many runs."""
