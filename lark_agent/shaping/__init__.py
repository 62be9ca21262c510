"""How fast jobs may go: rates, guarantees, queues, and what can be booked."""
