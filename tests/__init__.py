"""The project's tests: `arena` starts real servers and judges what ran; the other packages are the tests."""
