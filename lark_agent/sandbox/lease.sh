#!/bin/sh
# What udhcpc calls when something becomes of its lease; see lark_agent/sandbox/leases.py.
#
# The address ends by itself with the lease (valid_lft): whatever stops the renewals, the kernel
# takes it back in time. A refusal (nak) ends it at once. The sandbox's job is held to the address
# that it began with, so another one that the server thinks of later is not taken.
# udhcpc has checked that ip, router and dns are IPv4 addresses, mask and lease are numbers.
set -eu

keep() { # FILE
    printf 'address=%s/%s\ngateway=%s\nresolvers=%s\n' "$ip" "$mask" "${router%% *}" "$dns" >"$1.new"
    mv "$1.new" "$1"
}

case $1 in
bound | renew)
    router=${router:-} dns=${dns:-} lease=${lease:-forever}
    if [ -e "$LARK_LEASE" ] && ! grep -qxF "address=$ip/$mask" "$LARK_LEASE"; then
        ip -4 address flush dev "$interface"
        exit 0
    fi
    ip -4 address replace "$ip/$mask" broadcast + dev "$interface" valid_lft "$lease" preferred_lft "$lease"
    if [ -n "$router" ]; then
        ip -4 route replace default via "${router%% *}" dev "$interface"
    fi
    keep "$LARK_KEPT"
    keep "$LARK_LEASE"
    ;;
nak)
    ip -4 address flush dev "$interface"
    ;;
esac
