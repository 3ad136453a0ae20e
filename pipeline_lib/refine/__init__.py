"""Stage `refine`: one epoch of a recipe, from the base model and the teacher cache to the refined model."""
