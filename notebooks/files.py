# %% tags=["setup"]
# @title The magic that writes the library
import re
from pathlib import Path

from IPython.core.magic import register_cell_magic


@register_cell_magic
def files(folder, cell):
    """Write the files of a folder. Each begins after a line with four # and its name."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in re.findall(r"^#### (\S+)\n(.*?)(?=^#### |\Z)", cell, re.MULTILINE | re.DOTALL):
        Path(folder, name).write_text(text.rstrip() + "\n", encoding="utf-8")
