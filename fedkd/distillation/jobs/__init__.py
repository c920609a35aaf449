"""A distillation job: teachers and pictures from a recipe, a student, its comparison, the results in a folder."""
