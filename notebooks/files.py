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
    imported = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    parts = re.findall(r"^#### (\S+)\n(.*?)(?=^#### |\Z)", cell, re.MULTILINE | re.DOTALL)
    texts = {Path(folder, name).resolve(): text.rstrip() + "\n" for name, text in parts}
    if stale := [path.name for path, text in texts.items()
                 if str(path) in imported and path.is_file() and path.read_text(encoding="utf-8") != text]:
        raise RuntimeError(f"{folder}: {', '.join(stale)} changed, and this kernel would go on with what it has "
                           "imported. Restart it and run all cells from the top")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
