"""A relay before a server whose connections a test can cut, as a failing network does."""

import socket
import threading
from typing import Self

from tests.ports import free_port


class Relay:
    """Passes bytes between clients and a port of this machine.

    Attributes:
        port: where clients connect.
        accepted: how many connections there have been.
    """

    def __init__(self, target: int):
        self.target, self.port, self.accepted = target, free_port(), 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))

    def cut(self) -> None:
        """End every open connection; new ones are accepted."""
        while self._open:
            one = self._open.pop()
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self.accepted += 1
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
