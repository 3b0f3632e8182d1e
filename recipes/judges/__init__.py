"""For a stage with a judge: `cache`, `exam` and `open_questions`. Other judges: `local_variants` asks a local model in
other ways, and `api_judge` uses an API."""
