"""Who may report to a collector: its own certificate authority, tokens, the workers' identities.

The collector is the only authority and the only peer, so nothing is trusted but what it signed:

* `certificates`: the forms of keys, requests and certificates;
* `authority`: the collector's directory with the authority's keys, open tokens, enrolled workers;
* `token`: what an admin carries from the collector to a worker, once;
* `identity`: what a worker has since then, one file.

A worker is `spiffe://lark/worker/NAME/GENERATION`. The generation grows with every enrolment under
that name, so that a machine that was replaced, or revoked, is told from its successor; renewed
certificates keep it. The collector is the DNS name `lark-collector`, wherever it runs: no worker
can get that name signed, so addresses need not be in certificates.
"""
