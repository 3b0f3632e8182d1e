"""Rubric judges: criteria, prompts, verdicts. Read `rubric`, `judge`."""
