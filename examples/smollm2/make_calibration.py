#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes calibration data out of a plain text file of English prose (.txt or .txt.gz).

    make_calibration.py TEXT OUT.jsonl [--words 480] [--tokens MODEL TOKENS.jsonl [--count 64] [--seq-len 512]]

Keeps paragraphs that read like sentences (no headings, tables, commands or indexes), joins their lines and groups
them until each group has --words words: a line {"text": ...} is long enough for 512 tokens. The same text gives the
same bytes. With --tokens it also writes {"input_ids": [...]} lines of exactly --seq-len ids, made with MODEL's tokenizer.
"""

import argparse
import gzip
import json
import re
import sys
from pathlib import Path


def read_text(path):
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", errors="replace")


def is_prose(paragraph):
    words = paragraph.split()
    plain = sum(1 for w in words if re.fullmatch(r"[\"'(]*[A-Za-z][A-Za-z'’-]*[.,;:!?)\"']*", w))
    return len(words) >= 12 and paragraph[-1] in ".!?:)" and plain >= 0.8 * len(words)


def paragraphs(text):
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split()).lstrip("* ")
        if paragraph and is_prose(paragraph):
            yield paragraph


def groups(text, words):
    lines, current, count = [], [], 0
    for paragraph in paragraphs(text):
        current.append(paragraph)
        count += len(paragraph.split())
        if count >= words:
            lines.append("\n\n".join(current))
            current, count = [], 0
    return lines


def write_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + ".partial")
    with open(staging, "w", encoding="utf-8") as f:
        for value in values:
            f.write(json.dumps(value, ensure_ascii=False) + "\n")
    staging.rename(path)


def token_lines(lines, model, count, seq_len):
    import tokenizers
    tok = tokenizers.Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    encoded = [tok.encode(line).ids for line in lines]
    kept = [ids[:seq_len] for ids in encoded if len(ids) >= seq_len][:count]
    if len(kept) < count:
        sys.exit(f"make_calibration.py: {len(kept)} lines have {seq_len} tokens, {count} were asked for")
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--words", type=int, default=480, help="words a line, at least (default %(default)s)")
    parser.add_argument("--tokens", nargs=2, metavar=("MODEL", "TOKENS.jsonl"))
    parser.add_argument("--count", type=int, default=64, help="lines of TOKENS.jsonl (default %(default)s)")
    parser.add_argument("--seq-len", type=int, default=512, help="ids a line of TOKENS.jsonl (default %(default)s)")
    args = parser.parse_args()
    lines = groups(read_text(args.text), args.words)
    if not lines:
        sys.exit(f"make_calibration.py: {args.text} holds no paragraphs of prose")
    write_lines(args.out, ({"text": line} for line in lines))
    print(f"calibration: {len(lines)} lines of {args.words} words or more in {args.out}")
    if args.tokens:
        kept = token_lines(lines, args.tokens[0], args.count, args.seq_len)
        write_lines(Path(args.tokens[1]), ({"input_ids": ids} for ids in kept))
        print(f"calibration: {len(kept)} lines of {args.seq_len} ids in {args.tokens[1]}")


if __name__ == "__main__":
    main()
