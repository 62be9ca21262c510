"""What a service need not load.

An agent runs on workers whose memory is the jobs'. Two libraries load far more than the agent uses
of them: structlog brings rich, to draw tracebacks in colour (4 MB), and `import pyroute2` brings
all of pyroute2, with its network database (5 MB). Nothing else is changed in either; a part of
pyroute2 that somebody starts to use is found as before, by its full name.

Measured with pyroute2 0.9 and structlog 26, as anonymous memory after all imports. Called before
the first import of either; programs that look at whole packages (tests) do not call it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec


def load_less() -> None:
    """Make rich unfindable, and pyroute2 a package whose parts are imported one by one."""
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes its import fail
    spec = find_spec("pyroute2")
    if spec is not None and "pyroute2" not in sys.modules:
        sys.modules["pyroute2"] = module_from_spec(spec)  # its own code is never run
