"""Guards and promises of the code, each broken in turn: the test that must notice."""
