"""The small models that ship with the project, and the recipes that made them."""
