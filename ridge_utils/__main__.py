"""``python -m ridge_utils``: the same as ``ridge``."""

from ridge_utils.run.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
