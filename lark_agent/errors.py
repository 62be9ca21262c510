"""The exceptions of LARK agent: one class per decision that a caller can take.

::

    LarkError
    ├── ConfigurationError     the admin must edit a file; the daemon keeps its old settings
    ├── PrerequisiteError      this machine lacks something (root, a kernel feature, a mount)
    ├── KernelError            the kernel refused one operation; retry or tear down
    ├── Refused                a job gets no sandbox: the text goes to its user
    │   ├── InvalidRequest     the datagram or an ad is malformed: the caller's mistake
    │   ├── PolicyRefusal      the site's rules say no: asking again will not help
    │   └── Unavailable        no sandbox now: another worker, or later, may do
    ├── StoreError             a durable store cannot be read or written
    └── RemoteError            a service did not answer, or answered no

Every message says what was tried, on what, what came back, and what to do about it.
"""


class LarkError(Exception):
    """Base of every error that LARK raises on purpose."""

    exit_status = 1


class ConfigurationError(LarkError):
    """A configuration file is wrong; the message lists file, key and remedy of each finding."""

    exit_status = 2


class PrerequisiteError(LarkError):
    """The machine lacks something the agent cannot work without."""

    exit_status = 3


class KernelError(LarkError):
    """The kernel refused an operation."""

    exit_status = 4

    def __init__(self, tried: str, cause: str, remedy: str = "", number: int = 0) -> None:
        super().__init__(f"{tried}: {cause}" + (f"; {remedy}" if remedy else ""))
        self.number = number
        """The kernel's error number, where it gave one."""


class Refused(LarkError):  # noqa: N818  reads as a verdict: "except Refused"
    """A job gets no sandbox."""

    exit_status = 125


class InvalidRequest(Refused):
    """The request itself is malformed."""


class PolicyRefusal(Refused):
    """The site's policy does not allow what the job asks for."""


class Unavailable(Refused):
    """No sandbox can be had at the moment."""


class StoreError(LarkError):
    """A durable store cannot be read or written."""

    exit_status = 5


class RemoteError(LarkError):
    """A service did not answer, or refused."""

    exit_status = 6
