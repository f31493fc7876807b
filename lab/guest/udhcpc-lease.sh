#!/bin/sh
# Called by udhcpc with the lease in its environment: apply the lease to the link and report it on the console.
export PATH=/bin
report() { echo "<3>hotnic-guest: $*" >/dev/kmsg; }

# A client that gets option 121 ignores the router option (RFC 3442). The next hop 0.0.0.0 means: on-link.
routes() {
	if [ "$staticroutes" ]; then
		set -- $staticroutes
		while [ $# -gt 1 ]; do
			via=
			[ "$2" = 0.0.0.0 ] || via="via $2"
			ip route replace "$1" $via dev "$interface" metric "$metric"
			shift 2
		done
		return
	fi
	for gateway in $router; do ip route replace default via "$gateway" dev "$interface" metric "$metric"; done
}

case "$1" in
deconfig) ip -4 address flush dev "$interface" ;;
bound | renew)
	[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
	ip -4 address replace "$ip/$mask" dev "$interface"
	read -r metric <"/sys/class/net/$interface/ifindex"
	routes
	{
		for domain in $search; do echo "search $domain"; done
		for server in $dns; do echo "nameserver $server"; done
	} >"/tmp/resolv.$interface"
	cat /tmp/resolv.* >/etc/resolv.conf
	report "address $1 $interface $ip/$mask router ${router:--} server ${serverid:--} lease ${lease:--}"
	;;
nak) report "address nak $interface ${message:--}" ;;
esac
