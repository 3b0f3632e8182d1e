"""Other judges. `local_variants` asks a local model in other ways. `api_judge` uses an API."""
