"""On the path of a process, this takes the network away: only this machine can be reached."""

import socket

_connect = socket.socket.connect


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the network is blocked in this test: {address}")
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        raise socket.gaierror(f"the network is blocked in this test: {host}")
    return _getaddrinfo(host, *args, **kwargs)


_getaddrinfo = socket.getaddrinfo
socket.socket.connect = connect
socket.getaddrinfo = getaddrinfo
