"""The wire between agents, collectors and people; `rpc.lark` is generated from protos/."""
