"""Judges behind an API. Read `score_sheet`, `api_client`, `api_judge`."""
