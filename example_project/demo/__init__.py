"""The demonstration (`python -m example_project.demo`): breaks the shop in every way, and measures what happens."""
