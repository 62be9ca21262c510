"""What a batch system's daemon tells its pool about this worker: GetMachine's answer.

A job is found by the slot it runs in. HTCondor starts each job's starter as ``condor_starter … -a
slot1_3 …``, as root, and a job's key names its starter (`lark_agent.hooks.launch`): the starter's
command line says the slot, and neither the job nor its ads have a word in it. Once the starter is
gone the slot may be another job's. A job whose starter is not root's has no key, and no slot here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.hooks import htcondor_ads
from lark_agent.linux import process
from lark_agent.model import Rates
from lark_agent.rpc import convert
from lark_agent.rpc.lark.v1 import agent_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.agent.attachment import Attachment
    from lark_agent.agent.attachments import Attachments
    from lark_agent.agent.tasks import OwnThread
    from lark_agent.config import AgentSettings
    from lark_agent.linux.uplink import Uplink
    from lark_agent.shaping.booking import Booking


class Machine:
    """Answers from the running agent's parts."""

    def __init__(
        self,
        settings: AgentSettings,
        attachments: Attachments,
        booking: Booking,
        in_kernel: OwnThread,
        uplink: Callable[[], Uplink],
    ) -> None:
        self._settings = settings
        self._attachments = attachments
        self._booking = booking
        self._in_kernel = in_kernel
        self._uplink = uplink

    async def answer(self) -> agent_pb2.GetMachineResponse:
        """Return the present state."""
        free = await self._in_kernel(self._booking.free)  # whose thread it belongs to
        capacity = self._settings.bookable
        booked = Rates(capacity.sent - free.sent, capacity.received - free.received)
        networks = self._settings.networks
        uplink = self._uplink()
        return agent_pb2.GetMachineResponse(
            uplink=uplink.interface,
            connectivities=sorted(kind.value for kind in self._settings.offered),
            families=["ipv4", *(["ipv6"] if uplink.has_ipv6 else [])],
            networks={name: network.vlan for name, network in networks.items()},
            capacity=agent_pb2.Rates(sent=capacity.sent, received=capacity.received),
            booked=agent_pb2.Rates(sent=booked.sent, received=booked.received),
            places=[
                agent_pb2.Place(slot=slot, record=convert.record_to_wire(attachment.record))
                for attachment, slot in self._placed()
            ],
        )

    def _placed(self) -> list[tuple[Attachment, str]]:
        living = self._attachments.living.values()
        return [(each, slot) for each in living if (slot := _slot(each.key))]


def _slot(key: str) -> str:
    """Return the slot that the launcher behind a job's key serves, "" if it is none or gone."""
    command, _, rest = key.partition(" ")
    pid, _, started = rest.partition(" ")
    if command != htcondor_ads.STARTER:
        return ""
    if process.start_time(int(pid)) != int(started):  # another's, whose memory may be slow to read
        return ""
    slot = htcondor_ads.slot_of(process.arguments(int(pid)))
    return slot if process.start_time(int(pid)) == int(started) else ""
