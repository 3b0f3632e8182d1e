# %% tags=["setup"]
import importlib.util
import sys
from pathlib import Path

here, library = Path.cwd(), "reasonkit/__init__.py"
homes = [folder for folder in (here, *here.parents) if (folder / library).is_file()]
homes += [found.parents[1] for found in sorted(here.glob(f"*/{library}"))]  # a clone in this folder, as on Colab
sys.path[:0] = [str(home) for home in homes[:1]]
if not hasattr(sys.modules.get("reasonkit"), "__version__"):
    sys.modules.pop("reasonkit", None)  # the clone's folder, imported as if it were the library
if not getattr(importlib.util.find_spec("reasonkit"), "origin", None):
    raise ModuleNotFoundError(f"no {library} in {here}, above it or in a folder of it, and this notebook needs the library. "
                              "On Kaggle import notebooks/submission.ipynb, which carries it. Elsewhere put a clone here, on "
                              "Colab by !git clone ADDRESS in a cell above, and run this cell again")

# %% tags=["setup"]
from reasonkit.session import setup

PINS = """
{{pins}}
scipy matplotlib ipywidgets jinja2
""".split()  # a name alone: in any version
if "PROFILE" not in globals():
    raise NameError("PROFILE is not set: run the cell tagged 'parameters' first, or Run all")
setup.check_choices(PROFILE, RECIPE, SEED, SETTINGS)
if setup.PROFILES[PROFILE].accelerator == "tpu":
    setup.require_tpu()
    PINS.append("{{libtpu}}")  # the TPU's compiler must match jax
setup.install(PINS)

# %% tags=["setup"]
from reasonkit.precheck import precheck

precheck(PROFILE, RECIPE, SEED, SETTINGS, {{choices}})
