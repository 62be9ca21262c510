"""Switch off what an interface leaves to hardware that does not exist (ethtool(8), by ioctl).

A veth hands over packets without checksums and up to 64 KB long, because the kernel at its other
end knows how to finish them. A program that reads its other end as raw frames, as Open vSwitch's
userspace datapath does, does not.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

from lark_agent.errors import KernelError

_SIOCETHTOOL = 0x8946
# include/uapi/linux/ethtool.h: ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO; segmentation goes
# with checksums, so it is switched off first
_SWITCHES = (("TSO", 0x1F), ("GSO", 0x24), ("checksums", 0x17))


def switch_off(interface: str) -> None:
    """Let an interface of this thread's namespace send finished packets. Raises KernelError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name, command in _SWITCHES:
            value = array.array("I", [command, 0])
            request = struct.pack("@16sP", interface.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(sock, _SIOCETHTOOL, request)
            except OSError as error:
                raise KernelError(
                    f"switching off {name} offload of {interface}", str(error.strerror)
                ) from error
