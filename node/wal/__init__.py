"""The durable transaction log: segments, checksums, group commit; entries go from the front in whole segments.

The log is a folder of segments `<sequence>.segment`, sequences rising from 1; "The front" below says which may be
missing. A segment is preallocated, so that a sync writes data and not the file's size. All integers are
big-endian. This is format 2.

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
    4 BASE    index u64, term u64                   a durable state covers the entries up to that one, which is of
                                                    that term: the second record of a segment, and each change

A write is one batch: a mark, then states, entries and bases, one `pwrite` and one `fdatasync`. A batch is synced
before the next one is begun. Opening the log and closing it each leave a mark as well, and a new segment's
`previous end` is one for the segment before. So what recovery finds behind the last valid record decides:

    zeros              the clean end
    in its begin       a segment gets its name when header, STATE and BASE are durable: WalDamaged
    no mark            the last batch was torn by a crash and nobody was told that it is durable: it is cut
    a mark             the record was durable, and is not what was written: WalDamaged
    not the last segment, or shorter than `size`: WalDamaged

The front. Entries leave the log in steps, each of which leaves the old or the new state wherever a crash falls:
`write_base` makes a BASE durable, `forget` takes the entries from readers, `clean` removes the segments that hold
only such ones, oldest first, and syncs the folder. A base never goes back, and no entry is written up to it.
Recovery takes what it finds, whatever sequence it begins with, and where a sequence is missing it begins anew with
the segment behind: the first of its entries is its `first index`, or the lowest one that its records, or later
ones, replace. The newest BASE must vouch for all in front of that; otherwise entries are missing: WalDamaged.
Those that it vouches for are left out, whether they are there or not.

A snapshot that takes the log's place (`reset`) is a new segment whose BASE is the entry in front of its `first
index`. A segment that begins like this follows from nothing: what older ones hold does not count, whatever their
indexes. (One that begins when the base has caught up with the last entry looks the same, and means the same.)

Format 1 had no BASE. Its segments can be read, as those of a log with base (0, 0), of which nothing is missing;
nothing is appended to them: opening begins a new segment.

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
