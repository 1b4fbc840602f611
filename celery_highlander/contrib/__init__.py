"""What helps with a certain framework; each module needs that framework, and nothing else of ours needs it."""
