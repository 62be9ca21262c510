"""Network sandboxes: build, pool, claim, dismantle."""
