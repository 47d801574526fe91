"""Ports of this machine for programs that tests start."""

import socket


def reserved_port() -> socket.socket:
    """Return a socket that keeps its port, on all addresses, from others until it is closed.

    A program that asks for SO_REUSEADDR, as Slurm and Chromium's driver do, may listen there all the same.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved


def number_of(reserved: socket.socket) -> int:
    number: int = reserved.getsockname()[1]
    return number
