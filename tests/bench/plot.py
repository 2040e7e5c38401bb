#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pictures of what bench_gpu.py measured, as SVG. Standard library only.

  plot.py RESULTS.json [MORE.json ...] -o docs/plots/NAME.svg [--goal 0.7] [--title TEXT]

Upper part: the phases of the whole job, one bar for each mode and one for the peer (medians; what lies between the phases is grey). Lower part: how much
of the limit each mode reached - the slowest of reading, matmuls and writing, over the wall time - with the goal as a line.
"""
import argparse
import json
import os
import statistics
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, BAR, GAP = 860, 190, 100, 26, 12
# Dark enough on the page's own white for white numbers on them; told apart without colour by their order and their numbers.
COLOURS = {"check": "#6c5b7b", "load": "#2471a3", "calibrate": "#1e8449", "evict": "#b9770e", "merge": "#a93226",
           "imports": "#4d5656", "export": "#784212", "other": "#7f8c8d"}
SAME = {"calib": "calibrate", "quantize": "calibrate"}      # what a peer calls it
INK, GRID = "#222222", "#d5d8dc"


class Picture:
    """Elements from the top down; y is where the next one begins."""

    def __init__(self):
        self.parts, self.y = [], 16

    def text(self, x, y, words, anchor="start", colour=INK, size=12, weight="normal"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" font-weight="{weight}">{escape(words)}</text>')

    def line(self, x1, y1, x2, y2, colour=GRID, width=1, dashes=""):
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def bar(self, x, y, width, colour):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')

    def heading(self, words, size=14):
        self.y += size + 4
        self.text(16, self.y, words, size=size, weight="bold")
        self.y += 12

    def note(self, words):
        for part in wrapped(words, 125):
            self.y += 15
            self.text(16, self.y, part, colour="#566573", size=11)
        self.y += 10

    def svg(self):
        height = self.y + 12
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">\n<!-- SPDX-License-Identifier: Apache-2.0 -->\n'
                f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>\n' + "\n".join(self.parts) + "\n</svg>\n")


def wrapped(words, most):
    lines = [""]
    for word in words.split():
        if len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def ticks(largest):
    """Round steps, at most about six."""
    step = next(s for e in range(-3, 9) for s in (10**e, 2 * 10**e, 5 * 10**e) if largest / s <= 6)
    return [i * step for i in range(int(largest / step) + 1)]


def axis(p, rows, largest, label):
    """Grid lines behind so many bars, and the scale: value -> x."""
    height = rows * (BAR + GAP)
    for t in ticks(largest):
        x = LEFT + t / largest * (WIDTH - LEFT - RIGHT)
        p.line(x, p.y, x, p.y + height)
        p.text(x, p.y + height + 14, label(t), "middle", size=11)
    return lambda v: LEFT + v / largest * (WIDTH - LEFT - RIGHT)


def bars_of(results):
    """(label, wall, [(phase, seconds)]) of each mode and of the peer, medians."""
    bars = []
    for r in results:
        for name, m in measured(r):
            bars.append((label_of(results, r, name), m["wall"], list(m["phases"].items())))
        if "peer" in r:
            wall = statistics.median(p["wall"] for p in r["peer"])
            bars.append((label_of(results, r, r["peer_name"]), wall,
                         [(SAME.get(k, k), statistics.median(p["phases"][k] for p in r["peer"])) for k in r["peer"][0]["phases"]]))
    return bars


def measured(r):
    """The modes that got as far as one whole job."""
    return [(name, m) for name, m in r["modes"].items() if m["runs"]]


def label_of(results, r, name):
    weights = r["source_bytes"] / 2e9
    return name if len(results) == 1 else f"{name}, {weights:.3g} G"


def phases(p, results):
    bars = bars_of(results)
    used = list(dict.fromkeys(k for _, _, ph in bars for k, _ in ph if k in COLOURS)) + ["other"]
    p.heading("Whole job: seconds by phase")
    x = LEFT
    for name in used:
        p.parts.append(f'<rect x="{x:.1f}" y="{p.y:.1f}" width="12" height="12" fill="{COLOURS[name]}"/>')
        p.text(x + 17, p.y + 10, name, size=11)
        x += 32 + 6.6 * len(name)
    p.y += 24
    to_x = axis(p, len(bars), max(wall for _, wall, _ in bars) * 1.02, lambda t: f"{t:g} s")
    for label, wall, parts in bars:
        y, at = p.y + GAP / 2, 0.0
        p.text(LEFT - 10, y + 17, label, "end")
        rest = wall - sum(s for _, s in parts)
        for name, seconds in parts + [("other", max(rest, 0))]:
            width = to_x(at + seconds) - to_x(at)
            p.bar(to_x(at), y, width, COLOURS.get(name, COLOURS["other"]))
            if width > 34:
                p.text(to_x(at) + width / 2, y + 17, f"{seconds:.1f}", "middle", "#ffffff", 11)
            at += seconds
        p.text(to_x(max(at, wall)) + 6, y + 17, f"{wall:.1f} s", weight="bold")
        p.y += BAR + GAP
    p.y += 26


def shares(p, results, goal):
    bars = [(label_of(results, r, name), m["share"], m["share_of_sum"], m["limit"]) for r in results for name, m in measured(r) if "share" in m]
    if not bars:
        return
    p.heading("Share of the machine's limit")
    largest = max([1.0] + [s for _, _, s, _ in bars])
    p.y += 16 if goal else 0      # for the goal's words
    to_x = axis(p, len(bars), largest, lambda t: f"{t:.0%}")
    top = p.y
    for label, share, of_sum, limit in bars:
        y = p.y + GAP / 2
        p.text(LEFT - 10, y + 17, label, "end")
        p.bar(to_x(0), y, to_x(share) - to_x(0), "#2471a3")
        slowest = max(("read", "matmul", "write"), key=lambda k: limit[k])
        words = f"{share:.0%}  (limit: {slowest}, {limit['max']:.1f} s; one after the other {limit['sum']:.1f} s, {of_sum:.0%})"
        inside = to_x(share) - to_x(0) > 7 * len(words)
        # Its own background: the words may lie over grid lines and over the goal.
        if not inside:
            p.parts.append(f'<rect x="{to_x(share) + 3:.1f}" y="{y + 4:.1f}" width="{6.3 * len(words):.1f}" height="18" fill="#ffffff"/>')
        p.text(to_x(share) + (-8 if inside else 6), y + 17, words, "end" if inside else "start", "#ffffff" if inside else INK, 11.5)
        p.y += BAR + GAP
    if goal:
        p.line(to_x(goal), top - 4, to_x(goal), top + 3, "#a93226", 2)
        for i in range(len(bars) + 1):      # between the bars, so that it crosses no words
            y = top + i * (BAR + GAP)
            p.line(to_x(goal), y - GAP / 2 if i else y, to_x(goal), y + GAP / 2, "#a93226", 2)
        p.text(to_x(goal), top - 7, f"goal {goal:.0%}", "middle", "#a93226", 11.5, "bold")
    p.y += 26


def said(results):
    words = []
    for r in results:
        host, s = r["host"], r["shape"]
        words.append(f"{r['date']}: {r['source_bytes'] / 2e9:.3g} G weights ({s['num_hidden_layers']} layers, {s['hidden_size']}/{s['intermediate_size']}), {r['samples']} x {r['seq_len']} tokens; "
                     f"{', '.join(host['gpus'] or [host['cpu']])}, {host['cores']} cores; load {r['load_before']:.1f} to {r['load_after']:.1f}; medians of "
                     f"{len(next(iter(r['modes'].values()))['runs'])} rounds{'; source not in the page cache' if r['cold'] else ''}. {r['note']}")
    return words


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("results", nargs="+", help="what bench_gpu.py --json wrote")
    ap.add_argument("-o", "--out", required=True)
    ap.add_argument("--goal", type=float, default=0.0, help="share of the limit that was aimed at, e.g. 0.7 (default: no line)")
    ap.add_argument("--title", default="", help="above everything")
    a = ap.parse_args()
    results = []
    for path in a.results:
        with open(path) as f:
            results.append(json.load(f))
    p = Picture()
    if a.title:
        p.heading(a.title, 16)
    phases(p, results)
    shares(p, results, a.goal)
    for words in said(results):
        p.note(words)
    os.makedirs(os.path.dirname(a.out) or ".", exist_ok=True)
    with open(a.out, "w") as f:
        f.write(p.svg())


if __name__ == "__main__":
    main()
