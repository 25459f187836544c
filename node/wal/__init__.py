"""The durable transaction log: segments, checksums, group commit.

The log is a folder of segments `<sequence>.segment`, sequences from 1 without a gap. A segment is preallocated,
so that a sync writes data and not the file's size. All integers are big-endian.

    segment = header | record ... record | zeros
    header  = magic "RaftWAL\\0" | format u32 | sequence u64 | size u64 | first index u64 | previous end u64
              | salt 16 bytes | CRC32C u32 of all that
    record  = length of payload u32 | type u8 | CRC32C u32 | payload

`size` is the segment's whole length, `first index` the index that the next entry had when the segment was begun,
`previous end` the offset behind the last record of the segment before. A record's checksum covers the segment's
salt, the record's offset, length, type and payload: neither what an earlier use of the same disk blocks left
behind, nor a record that was written to a wrong place, passes. Types and payloads:

    1 STATE   term u64, vote u64                    the first record of a segment, and each change
    2 ENTRY   term u64, index u64, kind u8, data    replaces every earlier entry from index on
    3 MARK    its own offset u64                    everything before is durable

A write is one batch: a mark, then states and entries, one `pwrite` and one `fdatasync`. A batch is synced before
the next one is begun. Opening the log and closing it each leave a mark as well, and a new segment's `previous end`
is one for the segment before. So what recovery finds behind the last valid record decides:

    zeros              the clean end
    no mark            the last batch was torn by a crash and nobody was told that it is durable: it is cut
    a mark             the record was durable, and is not what was written: WalDamaged
    not the last segment, or shorter than `size`: WalDamaged

What cannot be told apart: a record of the very last batch before a crash that was synced and then damaged looks
like one that was torn. Such a node has lost entries, or a vote, that it had confirmed; that the engine has applied
more than the log holds shows the case at start when it reaches that far. A log whose last whole segments were
deleted looks like a shorter log, in the same way.

What is read back at start may be in the page cache only (a process killed between write and sync) or be marked
clean by a sync that failed (then the kernel keeps what the disk never got). So opening writes the last batch
again, and zeros over the rest of the segment, and syncs before anything in it counts as durable.
"""

from raftstorage.node.wal.format import WalDamaged, WalError
from raftstorage.node.wal.wal import Wal

__all__ = ["Wal", "WalDamaged", "WalError"]
