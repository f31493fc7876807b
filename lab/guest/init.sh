#!/bin/sh
# The guest's init: mounts, kernel modules, the guest agent, reports about links, and a DHCP client for each link.
# Reports go through /dev/kmsg, so that the kernel puts its time stamp in front of every line and writes each line
# to the serial console as a whole; lab/guest/console.py parses these lines.
export PATH=/bin HOME=/ TERM=linux
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mkfifo /tmp/ready
# No other host uses these addresses; duplicate address detection would delay each of them by a second or two.
echo 0 >/proc/sys/net/ipv6/conf/default/dad_transmits
# Accept the routes that a router advertises (RFC 4191), as a network manager would.
echo 128 >/proc/sys/net/ipv6/conf/default/accept_ra_rt_info_max_plen

# Priority 3 (error) is above the console's log level, which hides the kernel's own messages.
report() { echo "<3>hotnic-guest: $*" >/dev/kmsg; }

# Start DHCP on a link.
join() {
	udhcpc -f -i "$1" -s /bin/udhcpc-lease -O staticroutes -O search -O mtu -t 4 -T 1 -A 5 -p "/tmp/udhcpc.$1" \
		>/dev/null 2>&1 &
	join6
}

# One DHCPv6 client serves all links, because two would receive each other's replies. A new link replaces the client;
# it is killed so that it does not release its addresses.
join6() {
	read -r client </tmp/dhcp6c && kill -KILL "$client"
	names=$(ls /sys/class/net)
	number=0
	for name in $names; do
		[ "$name" != lo ] || continue
		number=$((number + 1))
		echo "interface $name { send ia-na $number; send rapid-commit; request domain-name-servers; };"
		echo "id-assoc na $number { };"
	done >/etc/dhcp6c.conf
	/sbin/dhcp6c -f -c /etc/dhcp6c.conf -p /tmp/dhcp6c ${names/lo/} &
} >/dev/null 2>&1

leave() {
	read -r client <"/tmp/udhcpc.$1" && kill "$client"
	rm -f "/tmp/udhcpc.$1" "/tmp/resolv.$1"
} 2>/dev/null

# Report global IPv6 addresses, and links as `ip -o link` prints them: one line for each message of the kernel. Only
# shell builtins run, so that no process is started between the kernel's message and the report. `known` holds
# " NAME/MAC/MTU/STATE/CARRIER " of each link.
follow() {
	set -f # the line is split into words without pathname expansion
	known=' '
	while read -r line; do
		set -- $line
		gone=
		[ "$1" = Deleted ] && gone=yes && shift
		case "$3" in
		inet) continue ;; # udhcpc-lease reports IPv4 addresses with their lease
		inet6)
			[ "$gone" ] || [ "$6" != global ] || [ "${line%tentative*}" != "$line" ] || report "address bound $2 $4 router - server - lease -"
			continue
			;;
		esac
		name=${2%:} flags=$3 mac=- mtu=- state=down carrier=off
		name=${name%%@*}
		[ "$name" != lo ] || continue
		case "$flags" in *[\<,]UP[,\>]*) state=up ;; esac
		case "$flags" in *[\<,]LOWER_UP[,\>]*) carrier=on ;; esac
		while [ $# -gt 1 ]; do
			case "$1" in mtu) mtu=$2 ;; link/*) mac=$2 ;; esac
			shift
		done
		action=add
		case "$known" in
		*" $name/$mac/$mtu/$state/$carrier "*) [ "$gone" ] || continue ;;
		esac
		case "$known" in
		*" $name/"*)
			action=change
			after=${known#*" $name/"}
			known="${known%%" $name/"*} ${after#* }"
			;;
		esac
		if [ "$gone" ]; then
			report "link remove $name mac - mtu - state - carrier -"
			leave "$name"
			continue
		fi
		known="$known$name/$mac/$mtu/$state/$carrier "
		report "link $action $name mac $mac mtu $mtu state $state carrier $carrier"
		[ "$action" = add ] || continue
		[ "$state" = up ] || ip link set "$name" up
		join "$name"
	done
}

# Listen to the kernel before the drivers are loaded, so that no link is missed.
{
	/sbin/ip -o monitor link address &
	until grep -q " 0  *$! .*00000111" /proc/net/netlink; do sleep 0.05; done
	read -r modules </etc/modules
	modprobe -a $modules
	echo ready >/tmp/ready
	wait
} | follow &
ip link set lo up
read -r _ </tmp/ready
hostname guest

# The port's name appears when the device reports it, on a busy host later than the driver, hence the retries.
start_agent() {
	tries=0
	while [ $((tries += 1)) -le 600 ]; do
		for port in /sys/class/virtio-ports/*; do
			name=
			[ -r "$port/name" ] && read -r name <"$port/name"
			[ "$name" = org.qemu.guest_agent.0 ] || continue
			exec qemu-ga -m virtio-serial -p "/dev/${port##*/}" -t /tmp
		done
		sleep 0.05
	done
}
start_agent >/tmp/qemu-ga.log 2>&1 &

report ready
while :; do setsid cttyhack sh; done
