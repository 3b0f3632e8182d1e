"""Other judges. `local_variants` ask a local model otherwise; `score_sheet`, `api_client`, `api_judge` use an API."""
