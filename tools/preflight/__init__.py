"""Does a run fit the chips and the hours? Read `forecast`, `compile_program`, `programs`."""
