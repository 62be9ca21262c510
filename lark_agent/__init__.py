"""LARK agent: network identity, policy and accounting for batch jobs.

The rooms of this package are drawn in docs/architecture.md. In one breath: `lark-run`
(`hooks`) asks the agent (`agent`) for a network sandbox (`sandbox`), the site's rules
(`policy`) decide what kind, an eBPF program (`datapath`) counts and admits every packet,
`accounting` makes the counts durable, and the `collector` keeps them for the pool.
"""
