"""Sums and exchanges between the ranks of one host, through memory that they share.

gloo hands each message to threads of its own, and on a CPU the wake-ups take longer than the sums:
between two ranks, 512 KiB took three times as long as here. Here a rank writes where the others
can read, sends each a note over a Unix socket, and waits for theirs. Memory and sockets have no
name in any file system (memfd_create(2), unix(7): abstract sockets), so a process that is killed
leaves nothing behind, and its peers notice at once. Linux only.
"""

import mmap
import os
import secrets
import socket
import struct
import weakref
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtron_parallel.memory import SLOT_BYTES, SLOTS_PER_RANK

_HANDSHAKE_SECONDS = 5.0
_HELLO = struct.Struct("=I")
"""The rank of the process that connects."""
_NOTE = struct.Struct("=BQ")
"""What a rank has written, as `Kind`, and how many bytes of it."""
_CREDENTIALS = struct.Struct("=iii")
"""Process, user and group of a peer: `struct ucred` of unix(7)."""


class Kind(IntEnum):
    """What ranks do together."""

    SUM = 0
    MAXIMUM = 1
    GATHER = 2
    SCATTER_SUM = 3


class HostMemory:
    """Memory that the ranks of a group share, and the sockets through which they wake each other.

    There are two sets of slots, used in turn. Whoever writes to a set for the next but one time
    has had a note of each other rank in between, which is sent when its reading of that set is
    over; so nobody overwrites what is still being read. All ranks call the same methods in the
    same order with tensors of the same sizes and types. Sums are taken in the order of the ranks
    on each of them, so that all get the same bits, in every run.

    Args:
        rank: position of this process in the group.
        peers: sockets of the other ranks, in their order.
        memory: holds two sets of slots of `SLOT_BYTES` for all ranks.
        timeout_seconds: longest wait for another rank.
    """

    def __init__(
        self, rank: int, peers: Sequence[socket.socket], memory: mmap.mmap, timeout_seconds: float
    ) -> None:
        self._rank, self._peers = rank, list(peers)
        self._sets = torch.frombuffer(memory, dtype=torch.uint8).view(
            SLOTS_PER_RANK, len(peers) + 1, SLOT_BYTES
        )
        self._set = 0
        for peer in self._peers:
            peer.settimeout(timeout_seconds)
        self.close = weakref.finalize(self, _close, self._peers)

    def reduce(self, tensor: Tensor, maximum: bool = False) -> Tensor:
        """Return the sum of `tensor` over the ranks, a new tensor; or the largest, by element.

        Raises:
            TimeoutError: a rank did not come in time.
            ConnectionError: a rank has ended.
            RuntimeError: the ranks do not do the same.
        """
        kind = Kind.MAXIMUM if maximum else Kind.SUM
        values = tensor.contiguous().view(-1)
        result = torch.empty_like(values)
        step = SLOT_BYTES // values.itemsize
        for start in range(0, len(values), step):
            own = values[start : start + step]
            slots = self._slots(own.dtype, len(own))
            slots[self._rank].copy_(own)
            self._meet(kind, values.nbytes)
            rows = list(slots)
            rows[self._rank] = own
            _combine(rows, result[start : start + step], torch.maximum if maximum else torch.add)
        return result.view(tensor.shape)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return `tensor` of all ranks, `[ranks, *tensor.shape]`. Raises what `reduce` does."""
        values = tensor.contiguous().view(-1)
        result = values.new_empty((self._size, len(values)))
        step = SLOT_BYTES // values.itemsize
        for start in range(0, len(values), step):
            own = values[start : start + step]
            slots = self._slots(own.dtype, len(own))
            slots[self._rank].copy_(own)
            self._meet(Kind.GATHER, values.nbytes)
            result[:, start : start + step] = slots
        return result.view(self._size, *tensor.shape)

    def scatter_sum(self, parts: Tensor) -> Tensor:
        """Return the sum over the ranks of the part of `parts`, `[ranks, ...]`, with the number of
        this rank. Raises what `reduce` does.
        """
        values = parts.contiguous().view(self._size, -1)
        result = values.new_empty(values.shape[1])
        step = SLOT_BYTES // values.itemsize // self._size
        others = [rank for rank in range(self._size) if rank != self._rank]
        for start in range(0, len(result), step):
            own = values[:, start : start + step]
            slots = self._slots(own.dtype, own.numel()).view(self._size, self._size, -1)
            for rank in others:
                slots[self._rank, rank].copy_(own[rank])
            self._meet(Kind.SCATTER_SUM, values.nbytes)
            rows = list(slots[:, self._rank])
            rows[self._rank] = own[self._rank]
            _combine(rows, result[start : start + step], torch.add)
        return result.view(parts.shape[1:])

    @property
    def _size(self) -> int:
        return len(self._peers) + 1

    def _slots(self, dtype: torch.dtype, count: int) -> Tensor:
        """Return the ranks' slots for the next exchange, `[ranks, count]`."""
        self._set ^= 1
        return self._sets[self._set, :, : count * dtype.itemsize].view(dtype)

    def _meet(self, kind: Kind, num_bytes: int) -> None:
        """Tell the others that this rank has written, and wait until they have."""
        note = _NOTE.pack(kind, num_bytes)
        for peer in self._peers:
            peer.sendall(note)
        for number, peer in enumerate(self._peers):
            found = peer.recv(_NOTE.size)
            if found != note:
                rank = number + (number >= self._rank)
                raise _difference(rank, found, f"{num_bytes} bytes to {_name(kind)}")


def connect(
    rank: int, size: int, share: Callable[[Any], list[Any]], timeout_seconds: float
) -> HostMemory | None:
    """Connect the ranks of a group, if they are processes of one user on one Linux host.

    Args:
        rank: of this process in the group.
        size: number of ranks.
        share: returns what each rank gives it, in the ranks' order; all ranks call it.
        timeout_seconds: longest wait for another rank, once they are connected.

    Returns:
        None, on all ranks, where they cannot: on several hosts, say.
    """
    listener = _listen(size)
    try:
        address = listener and listener.getsockname()
        found = share((address, listener and _host()))
        connected = None
        if None not in (item[0] for item in found) and len({item[1] for item in found}) == 1:
            assert listener is not None
            try:
                connected = _meet_all(rank, [item[0] for item in found], listener, timeout_seconds)
            except OSError:  # a container without the rights, no memory: gloo then does it
                connected = None
        agreed = all(share(connected is not None))
        if connected is not None and not agreed:
            connected.close()
        return connected if agreed else None
    finally:
        if listener is not None:
            listener.close()


def _listen(size: int) -> socket.socket | None:
    """Return a socket that others can find by a random name; None where there is no such thing."""
    if not hasattr(os, "memfd_create"):
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0mtron-{secrets.token_hex(16)}")
        listener.listen(size)
    except OSError:
        listener.close()
        return None
    return listener


def _host() -> tuple[str, int, int]:
    """Return what processes have in common that can find each other's sockets."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return boot, Path("/proc/self/ns/net").stat().st_ino, os.getuid()


def _meet_all(
    rank: int, addresses: Sequence[Any], listener: socket.socket, timeout_seconds: float
) -> HostMemory:
    """Connect to the ranks before this one, wait for those after it; the first shares memory."""
    peers: dict[int, socket.socket] = {}
    try:
        for other in range(rank):
            peers[other] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peers[other].settimeout(_HANDSHAKE_SECONDS)
            peers[other].connect(addresses[other])
            peers[other].sendall(_HELLO.pack(rank))
        listener.settimeout(_HANDSHAKE_SECONDS)
        while len(peers) < len(addresses) - 1:
            connection, _ = listener.accept()
            connection.settimeout(_HANDSHAKE_SECONDS)
            if not _is_own(connection):
                connection.close()
                continue
            (other,) = _HELLO.unpack(connection.recv(_HELLO.size))
            peers[other] = connection
        ordered = [peers[other] for other in sorted(peers)]
        memory = _share_memory(rank, ordered, SLOTS_PER_RANK * len(addresses) * SLOT_BYTES)
        return HostMemory(rank, ordered, memory, timeout_seconds)
    except BaseException:
        _close(peers.values())
        raise


def _is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user; names of sockets are public."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(found)[1] == os.getuid()


def _share_memory(rank: int, peers: Sequence[socket.socket], num_bytes: int) -> mmap.mmap:
    """Return memory that the first rank has made and sent to the others."""
    if rank == 0:
        descriptor = os.memfd_create("mtron", os.MFD_CLOEXEC)
    else:
        _, (descriptor,), _, _ = socket.recv_fds(peers[0], 1, 1)
    try:
        if rank == 0:
            os.posix_fallocate(descriptor, 0, num_bytes)  # fails now rather than when it is used
            for peer in peers:
                socket.send_fds(peer, [b"m"], [descriptor])
        return mmap.mmap(descriptor, num_bytes)
    finally:
        os.close(descriptor)


def _combine(rows: Sequence[Tensor], result: Tensor, operation: Callable[..., Tensor]) -> None:
    """Combine at least two rows from the first to the last."""
    operation(rows[0], rows[1], out=result)
    for row in rows[2:]:
        operation(result, row, out=result)


def _difference(rank: int, found: bytes, own: str) -> Exception:
    """Return what to raise where rank `rank` has sent another note than this one."""
    if len(found) != _NOTE.size:
        return ConnectionResetError(f"rank {rank} of the group has closed its connection")
    kind, num_bytes = _NOTE.unpack(found)
    other = f"{num_bytes} bytes to {_name(Kind(kind))}"
    return RuntimeError(f"the ranks do not do the same: this one has {own}, rank {rank} {other}")


def _name(kind: Kind) -> str:
    return kind.name.lower().replace("_", " ")


def _close(peers: Any) -> None:
    for peer in peers:
        peer.close()
