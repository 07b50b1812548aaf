"""Training of relaxed networks: recipes, distillation, and a loop that can be continued."""
