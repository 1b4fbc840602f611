"""What users have: whole applications, run as they run them."""
