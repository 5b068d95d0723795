"""Print the whole book as one PDF, with page numbers and links that work inside it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import chromium

ROOT = Path(__file__).resolve().parent.parent
#: How long the page's formulas may take to be set, in the browser's own time: ms.
PATIENCE = 120_000


def main() -> int:
    """Build one page of all pages, print it, say where the PDF is."""
    program = chromium.find()
    build = [sys.executable, str(ROOT / "book" / "build.py"), "--builder", "singlehtml"]
    if subprocess.run(build, check=False).returncode:
        return 1
    target = ROOT / "_build" / "ridge.pdf"
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--disable-gpu", f"--user-data-dir={profile}", "--no-pdf-header-footer"]
        options += ["--generate-pdf-document-outline", f"--virtual-time-budget={PATIENCE}", f"--print-to-pdf={target}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # Chromium has no sandbox for root
            options.append("--no-sandbox")
        page = (ROOT / "_build" / "singlehtml" / "index.html").as_uri()
        done = subprocess.run([program, *options, page], capture_output=True, text=True, check=False)
    if not target.is_file():
        print(f"{program} printed nothing:\n{done.stderr[-2000:]}")
        return 1
    print(f"The book as one PDF:\n  {target.as_uri()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
