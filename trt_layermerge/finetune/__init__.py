"""Training of relaxed networks: data, augmentation, recipes and a loop that resumes exactly."""
