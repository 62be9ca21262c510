"""Hundreds of short jobs a minute against faults: at the end the books must equal the wire.

`make soak MINUTES=10` runs it alone; the test suite has a shorter run of the same. Real agent,
collector, wrapper and traffic in one laboratory:

* `jobs`: what runs, by several users at once, over each way into a sandbox;
* `faults`: what goes wrong, again and again, by a seed that is printed;
* `books`: what the collector has at the end, each record for itself, beside captures at the far
  hosts;
* `leaks`: what is left in kernel, files and daemons.

Loss is made inside the far hosts, behind their captures on the way in and before them on the way
out, so a lost packet was on the wire and is in the books, and its repetition too. What ends a
connection (SYN, FIN, RST) is not lost: a far host that did not hear of a job's end would send to
nobody for minutes, and that belongs to no job.
"""
