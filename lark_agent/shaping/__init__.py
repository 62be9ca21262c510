"""How fast jobs may go: rates, guarantees, queues, and what can be booked.

`shaping` puts plans in force, `tree` says which HTB classes that takes, `booking` what is free.
"""
