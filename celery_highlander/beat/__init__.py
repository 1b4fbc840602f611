"""The singleton beat: a scheduler that stands by until its node leads, and publishes each tick once."""
