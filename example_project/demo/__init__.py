"""The demonstration (`python -m example_project.demo`): breaks the shop in every way there is, and measures what happens."""
