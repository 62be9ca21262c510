"""Channels to the collector that show who the worker is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from lark_agent.trust.identity import COLLECTOR

if TYPE_CHECKING:
    from lark_agent.trust.identity import Identity

OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # the collector has this name in its certificate, wherever it runs
    ("grpc.ssl_target_name_override", COLLECTOR),
)


def credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Return what a worker shows, and whom it trusts."""
    return grpc.ssl_channel_credentials(
        identity.authorities.encode(), identity.key.encode(), identity.certificate.encode()
    )
