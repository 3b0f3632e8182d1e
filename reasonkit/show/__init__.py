"""What a reader sees: the live view and the report. Read `dashboard`, `report`."""
