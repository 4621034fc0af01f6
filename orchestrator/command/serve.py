"""A server that lives as long as the command that started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from assay.tasks.errors import BadInput

_GRACE_S = 10.0


def check_port(host: str, port: int) -> None:
    """Check that a server can listen at an address.

    Raises:
        BadInput: the host is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        text = f"{error.strerror}; choose another --port, or a --host of this machine"
        raise BadInput(f"--host {host} --port {port}: cannot listen there ({text})") from None


def serve(command: Sequence[str]) -> int:
    """Run a server until it ends, or until this process is asked to end; then the server ends, with all its workers.

    Returns:
        The exit status of a command: 0, 2 if the server ended with an error, 130 after Ctrl-C, 143 after SIGTERM.
    """

    def asked(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGHUP)}
    server: subprocess.Popen[bytes] | None = None
    try:
        # A session of its own: one signal reaches the server and its workers.
        server = subprocess.Popen(command, start_new_session=True)  # noqa: S603 (our own command, no shell)
        return 0 if server.wait() == 0 else 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        if server is not None:
            _end(server)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE_S)
            return
