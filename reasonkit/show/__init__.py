"""What a reader sees: curves, the live view, the report, single completions. Read `figures`, `dashboard`, `report`,
`completions`."""
