"""Command lines: `lark` for people, `lark-agent` and `lark-collector` for services."""
