"""Write a manual page for each of the three commands and each of their subcommands, from --help."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

from click_man.core import write_man_pages

from lark_agent.cli.agent import agent
from lark_agent.cli.collector import collector
from lark_agent.cli.lark import lark

for name, command in {"lark": lark, "lark-agent": agent, "lark-collector": collector}.items():
    write_man_pages(name, command, version=version("lark-agent"), target_dir=sys.argv[1])

# click's mark of a paragraph that keeps its lines, in the words of roff
for page in Path(sys.argv[1]).glob("*.1"):
    text = page.read_text(encoding="utf-8")
    kept = re.sub(r"\x08\n(.*?)(?=\n(?:\.PP)?\n|\n\.SH|\Z)", r".nf\n\1\n.fi", text, flags=re.DOTALL)
    page.write_text(kept, encoding="utf-8")
