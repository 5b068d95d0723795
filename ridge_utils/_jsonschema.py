"""Import jsonschema quickly; import this before nbformat or papermill.

They check notebooks with jsonschema, which at its import builds a grammar for the format "iri" where rfc3987_syntax is
installed, as JupyterLab has it. That takes 3 seconds, in every ``ridge`` and every notebook, and no notebook's schema
has the format; jsonschema does without where the import fails.
"""

import sys

_GRAMMAR = "rfc3987_syntax"

if _GRAMMAR not in sys.modules:
    sys.modules[_GRAMMAR] = None  # type: ignore[assignment]
    try:
        import jsonschema  # noqa: F401
    finally:
        del sys.modules[_GRAMMAR]
