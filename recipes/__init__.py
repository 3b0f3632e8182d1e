"""What you change: recipes, and the graders, judges, rewards and stages that only some of them need."""
