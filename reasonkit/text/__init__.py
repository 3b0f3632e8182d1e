"""Text in and out. Read `tags` (the prompt, the parser), then `answers`, then the readers that it names: `numbers`,
`choices`, `words`, and what they share, `cleaning`, `hedges` and `units`."""
