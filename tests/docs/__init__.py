"""What the pages say, executed."""
