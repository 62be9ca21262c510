"""Guards that are Python of the agent, each removed in turn: the test that must notice."""
