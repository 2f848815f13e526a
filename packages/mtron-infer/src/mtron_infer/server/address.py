"""Where a server listens, and who can reach it there. Imports no torch."""

import ipaddress
import socket


def check_address(host: str, api_key: str | None, allow_remote: bool) -> None:
    """Refuse to let other machines in unless that was asked for.

    Raises:
        ValueError: the address is not of this machine alone, and there is neither a key nor leave.
    """
    if not (_is_local(host) or api_key or allow_remote):
        raise ValueError(
            f"host: {host} lets other machines in; give an API key (--api-key), or say that "
            "everybody may use the server (--allow-remote), or use 127.0.0.1"
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; connections wait until the server runs.

    Raises:
        ValueError: there is no such port number.
        OSError: the port is in use, or the address does not exist.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port: must be between 0 and 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"host: {host!r} is no address of this machine ({error}); use 127.0.0.1"
        ) from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise OSError(
            error.errno,
            f"port: cannot listen on {host}:{port} ({error.strerror}); "
            "stop what uses it, or choose another with --port",
        ) from None
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the URL under which a server on this socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
