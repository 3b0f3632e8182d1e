"""Does a run fit the chips and the hours? Read `forecast`, `compiled`, `programs`."""
