"""What a reader sees: curves, the live view and the report. Read `figures`, `dashboard`, `report`."""
