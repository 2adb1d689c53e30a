"""What is computed from the counters of a run; nothing here runs anything."""

SECTOR_BYTES = 512


def block_bytes(bytes_read, reads):
    """The mean size of a read, rounded to a whole number of sectors, at least one."""
    return max(round(bytes_read / reads / SECTOR_BYTES), 1) * SECTOR_BYTES if reads else 0


def cold_share(reads, gets):
    """What share of the GETs went to disk, 0..1. Reads that others joined or that counters saw late may exceed it."""
    return min(reads / gets, 1) if gets else 0


def cold_mean_us(mean_us, mean_memory_us, share):
    """The mean latency of the GETs that went to disk, from the mean over all and that of a GET from memory."""
    if share <= 0:
        raise RuntimeError("no GET went to disk: the data is not larger than memory")
    return (mean_us - (1 - share) * mean_memory_us) / share


def ends(rates, parts=10):
    """(mean of the first part, of the last part) of equally spaced rates: of ten minutes the first and the last one."""
    n = max(len(rates) // parts, 1)
    return sum(rates[:n]) / n, sum(rates[-n:]) / n


def amplification(disk_bytes_written, writes, record_bytes):
    """Bytes written to disk for one byte of key and value."""
    return disk_bytes_written / (writes * record_bytes) if writes else 0


def parse_size(text):
    """64M, 2G, 4096 -> bytes."""
    unit = "KMGT".find(text[-1:].upper()) if text[-1:].isalpha() else -1
    if text[-1:].isalpha() and unit < 0:
        raise ValueError(f"'{text}' is not a size (examples: 4096, 64M, 2G)")
    return int(float(text[: -1 if unit >= 0 else None]) * 1024 ** (unit + 1))
