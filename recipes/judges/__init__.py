"""Other judges. `local_variants` ask a local model otherwise. `api_judge` uses an API."""
