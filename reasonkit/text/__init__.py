"""Text in and out: tags, and answers by kind. Read `tags`, `answers`, then the readers it names."""
