# %% tags=["setup"]
import sys
from importlib.metadata import distributions
from pathlib import Path

PINS = """
{{pins}}
""".split()
if PROFILE in ("kaggle", "colab"):
    PINS.append("{{libtpu}}")  # the TPU's compiler must match jax
home = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "reasonkit").is_dir()), Path.cwd())
sys.path.insert(0, str(home))
wanted = dict(pin.split("==") for pin in PINS)
if not all(any(found.version == version for found in distributions(name=name)) for name, version in wanted.items()):
    get_ipython().run_line_magic("pip", f"install -q {' '.join(PINS)}")
