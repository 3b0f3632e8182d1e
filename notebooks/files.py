# %% tags=["setup"]
# @title The magic that writes the library
import re
import sys
from pathlib import Path

from IPython.core.magic import register_cell_magic


@register_cell_magic
def files(folder, cell):
    """Write the files of a folder. Each begins after a line with four # and its name."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    imported, stale = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}, []
    for name, text in re.findall(r"^#### (\S+)\n(.*?)(?=^#### |\Z)", cell, re.MULTILINE | re.DOTALL):
        path, new = Path(folder, name).resolve(), text.rstrip() + "\n"
        if str(path) in imported and path.read_text(encoding="utf-8") != new:
            stale.append(name)
        path.write_text(new, encoding="utf-8")
    if stale:
        raise RuntimeError(f"{folder}: {', '.join(stale)} changed, and this kernel would go on with what it has "
                           "imported. Restart it and run all cells from the top")
