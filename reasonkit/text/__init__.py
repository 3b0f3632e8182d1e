"""The prompt, the parser and the grading of answers. Read `tags`, then `answers`, then the readers (`numbers`,
`choices`, `words`) and what they share (`cleaning`, `hedges`, `units`)."""
