"""From this checkout to conda packages: the recipe, run by py-rattler-build so that the same inputs give the same bytes."""
