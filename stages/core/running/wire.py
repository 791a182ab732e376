"""Messages between a stage's client and the server of `make repro`, over a unix socket.

Imports only what is quick to import, because every stage waits for it.
"""

import json
import socket
import struct

SERVER = "SHARED_FFN_SERVER"  # the environment variable that names the socket
SIZE = struct.Struct("!I")


def send(connection: socket.socket, message: object, descriptors: tuple[int, ...] = ()) -> None:
    """Send a JSON value, and file descriptors with it."""
    text = json.dumps(message).encode()
    socket.send_fds(connection, [SIZE.pack(len(text))], descriptors)
    connection.sendall(text)


def receive(connection: socket.socket, descriptors: int = 0) -> tuple[object, list[int]]:
    """The next value, and at most `descriptors` file descriptors. Raises EOFError where the other end is gone."""
    head, found, _, _ = socket.recv_fds(connection, SIZE.size, descriptors)
    head += _exactly(connection, SIZE.size - len(head))
    return json.loads(_exactly(connection, *SIZE.unpack(head))), found


def _exactly(connection: socket.socket, size: int) -> bytes:
    text = b""
    while len(text) < size:
        more = connection.recv(size - len(text))
        if not more:
            raise EOFError("the other end is gone")
        text += more
    return text
