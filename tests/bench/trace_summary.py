#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What traces (HOLDFAST_TRACE=DIR) say in numbers: of each kind of span how many, their time in sum and in the middle, how many ran at a time on
average over its own period, and that period.

  trace_summary.py DIR/*.json
"""
import collections
import json
import statistics
import sys


def main():
    spans = collections.defaultdict(list)
    for path in sys.argv[1:]:
        with open(path) as f:
            for event in json.load(f)["traceEvents"]:
                spans[event["name"]].append((event["ts"], event["ts"] + event["dur"]))
    if not spans:
        sys.exit("no spans: was HOLDFAST_TRACE set to a directory, and did the program end by itself?")
    begin = min(b for of in spans.values() for b, _ in of)
    print(f"{'span':24} {'count':>7} {'sum s':>8} {'median ms':>10} {'max ms':>9} {'at a time':>9}  {'from s':>7} {'to s':>7}")
    for name, of in sorted(spans.items(), key=lambda kv: min(b for b, _ in kv[1])):
        took = [e - b for b, e in of]
        first, last = min(b for b, _ in of), max(e for _, e in of)
        print(f"{name:24} {len(of):7} {sum(took) / 1e6:8.2f} {statistics.median(took) / 1e3:10.2f} {max(took) / 1e3:9.1f} {sum(took) / max(1, last - first):9.2f}"
              f"  {(first - begin) / 1e6:7.2f} {(last - begin) / 1e6:7.2f}")


if __name__ == "__main__":
    main()
