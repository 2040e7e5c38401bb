#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
#
# Reads a run directory from docs/ledger-format.md alone: python3's standard library, mdb_dump and zstd(1), none of our code.
#   read_run.py DIR         a run directory or a root: prints streams, slots and records; of samples also the amax vector
import hashlib, json, os, re, struct, subprocess, sys, tempfile

TRAILER = "<8sIIQQII16s16s16s32s32s32sII"  # 192 bytes
HEADER = "<HBBBBHQQQQII"                   # 48 bytes, in front of every value
KEY = ">BHIII"                             # 15 bytes


def entries(env):
    """(key, value) of an LMDB environment. mdb_dump -n leaves a lock file beside its input: give it a copy."""
    with tempfile.TemporaryDirectory() as tmp:
        open(tmp + "/env", "wb").write(env)
        lines = subprocess.run(["mdb_dump", "-n", tmp + "/env"], check=True, capture_output=True, text=True).stdout.splitlines()
    data = [bytes.fromhex(line) for line in lines[lines.index("HEADER=END") + 1:lines.index("DATA=END")]]
    return zip(data[0::2], data[1::2])


def payload(value):
    magic, version, cls, codec, flags, schema, epoch, raw_len, enc_len, wall, crc, header_crc = struct.unpack(HEADER, value[:48])
    assert magic == 0x4648 and version == 1 and enc_len == len(value) - 48
    raw = value[48:]
    if codec:
        raw = subprocess.run(["zstd", "-dc"], input=raw, check=True, capture_output=True).stdout
    n = len(raw) // (4 if codec == 3 else 2)
    if codec == 2:  # plane 0: exponent, plane 1: sign and mantissa
        raw = b"".join(struct.pack("<H", (m & 0x80) << 8 | e << 7 | m & 0x7f) for e, m in zip(raw[:n], raw[n:]))
    if codec == 3:  # four byte planes
        raw = bytes(raw[k * n + i] for i in range(n) for k in range(4))
    assert len(raw) == raw_len
    return epoch, raw


def read(path):
    """A committed name; on servers without hard links a directory with the file in it."""
    return open(path + "/data" if os.path.isdir(path) else path, "rb").read()


def read_stream(path, name):
    prev, files = bytes(32), sorted(f for f in os.listdir(path) if re.fullmatch("[0-9a-f]{8}\\.seg", f))
    print(f"stream {name}: {len(files)} slots")
    for number, file in enumerate(files):
        data = read(f"{path}/{file}")
        magic, length, seq, epoch, env_len, count, flags, job, incarnation, commit, stream, before, sha, zero, crc = struct.unpack(TRAILER, data[-192:])
        assert magic == b"LSEG0001" and seq == number == int(file[:8], 16) and env_len == len(data) - 192
        assert hashlib.sha256(data[:env_len]).digest() == sha and stream == hashlib.sha256(name.encode()).digest() and before == prev
        prev = hashlib.sha256(data[-192:]).digest()
        print(f"  slot {seq} epoch {epoch} by {incarnation.hex()[:8]}: {count} records")
        for key, value in entries(data[:env_len]):
            cls, stage, a, b, part = struct.unpack(KEY, key)
            raw = payload(value)[1]
            if chr(cls) == "S" and part == 1:
                print(f"    S sample {a} layers from {b}: amax", *struct.unpack(f"<{len(raw) // 4}f", raw))
            else:
                print(f"    {chr(cls)} stage {stage} a {a} b {b} part {part}: {raw[:1] == b'{' and sorted(json.loads(raw)) or f'{len(raw)} bytes'}")


root = sys.argv[1]
kind = "/FORMAT" if os.path.exists(root + "/FORMAT") else "/ROOT"
print(*[line for line in read(root + kind).decode().splitlines() if re.match("format|commit", line)], sep="\n")
for name in sorted(os.listdir(root + "/log")):
    read_stream(f"{root}/log/{name}", name)
