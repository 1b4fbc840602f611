"""Real servers, real faults and a referee for the tests; it knows nothing of the package under test."""
