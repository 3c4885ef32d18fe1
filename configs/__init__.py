"""Recipes: a config file is a few lines over `configs.common`."""
