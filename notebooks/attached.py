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
# in packages/, because the output of an earlier version may hold an older library
homes = [path.parents[1] for depth in range(6) for path in inputs.glob("*/" * depth + "packages/reasonkit/__init__.py")]
if len(homes) != 1:
    raise FileNotFoundError(f"{len(homes)} packages/reasonkit under {inputs}: {homes}. Attach the data set that "
                            "`make kaggle` made and no other of its kind (Add Input), and run this cell again")
sys.path.insert(0, str(homes[0]))
