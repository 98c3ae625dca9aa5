"""Sends one ICMPv6 message as an Ethernet frame, with whatever addresses it is told.

send.py INTERFACE MAC-TO FROM TO HOP-LIMIT MESSAGE, the message in hex with a checksum of zero.
"""

import socket
import struct
import sys

interface, mac, source, to, limit, message = sys.argv[1:]
source, to = (socket.inet_pton(socket.AF_INET6, address) for address in (source, to))
message = bytes.fromhex(message)
pseudo = source + to + struct.pack("!II", len(message), 58) + message
total = sum(struct.unpack(f"!{(len(pseudo) + 1) // 2}H", pseudo + b"\0" * (len(pseudo) % 2)))
while total > 0xFFFF:
    total = (total & 0xFFFF) + (total >> 16)
message = message[:2] + struct.pack("!H", 0xFFFF - total) + message[4:]
header = struct.pack("!IHBB", 6 << 28, len(message), 58, int(limit)) + source + to
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind((interface, 0))
    own = wire.getsockname()[4]
    wire.send(bytes.fromhex(mac.replace(":", "")) + own + struct.pack("!H", 0x86DD) + header + message)
