# %% [markdown]
# ## The library
#
# The library is attached as a data set, and the next cell puts it on the path. The cells after that install missing
# packages at pinned versions.

# %% tags=["setup"]
import os
import sys
from pathlib import Path

inputs = Path(os.environ.get("REASONKIT_INPUTS", "/kaggle/input"))
homes = [path.parents[1] for depth in range(1, 6) for path in inputs.glob("*/" * depth + "reasonkit/__init__.py")]
if not homes:
    raise FileNotFoundError(f"no reasonkit/__init__.py under {inputs}: attach the data set that `make kaggle` made. "
                            "Choose Add Input, Datasets, Your Work, and run this cell again")
sys.path.insert(0, str(homes[0]))
