"""A cluster in virtual time: real `election.node.Node`s, a modelled PostgreSQL, and faults drawn from a seed."""
