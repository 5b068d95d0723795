"""``ridge lab``: the notebooks in JupyterLab, as copies in a folder of the user's."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from ridge_utils import files, notebooks
from ridge_utils.errors import InputError, named
from ridge_utils.run import plain


def main(folder: Path, copy_only: bool) -> int:
    """Copy the notebooks that ``folder`` lacks, in plain Markdown, and open it; what is there stays as it is."""
    with files.scratch(folder) as made:
        for name in notebooks.names():
            if not (target := folder / f"{name}.ipynb").exists():
                shutil.copyfile(notebooks.find(name), made / target.name)
                plain.finish(made / target.name, True)
                files.replace(made, target)
    print(f"The notebooks are in {named(str(folder))}.", file=sys.stderr)
    if copy_only:
        return 0
    if not importlib.util.find_spec("jupyterlab"):
        raise InputError("JupyterLab is not installed: pip install 'ridge-utils[lab]'.")
    return subprocess.call([sys.executable, "-m", "jupyterlab", str(folder)])
