"""The session a run lives in: its clock, signals, log, manifests. Read `time_budget`, `run_log`, `manifest`."""
