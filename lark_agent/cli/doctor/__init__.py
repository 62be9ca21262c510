"""`lark doctor`: is this worker fit, and if not, what to do.

Checks are small functions from a `Probe` (a view of the machine whose every door can be replaced)
to findings; `report.CHECKS` is the table of them in the order in which a worker is set up: kernel,
firewall, network, installation, agent. A check changes nothing on the machine; what has to be
tried (can a namespace with NAT be made?) is tried in a namespace that ends with the attempt.

A check that needs root is never skipped in silence: without root it yields a finding that says
so. A check that breaks says that too, and the others go on.
"""
