#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""--help, the man pages and the README say the same.

    docs_agree_test.py BIN     BIN: folder with jobctl

Every option of `jobctl CMD --help` stands in jobctl(1), in the section of that command, and the other way round; the exit
codes stand in --help, jobctl(1) and README.md; links inside the Markdown pages lead somewhere.
"""

import re
import subprocess
import sys

from tree import ROOT, files, report, text

COMMANDS = ("run", "plan", "resume", "status", "submit", "nodes", "cancel", "drain", "undrain", "logs", "keygen", "fsck", "gc", "verify", "export")
EXIT_CODES = ("0", "1", "2", "75")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def help_of(binary, *command):
    ran = subprocess.run([binary, *command, "--help"], capture_output=True, text=True, timeout=60)
    if ran.returncode != 0:
        sys.exit(f"{binary} {' '.join(command)} --help: status {ran.returncode}: {ran.stderr}")
    return ran.stdout


def man_text(path):
    """The page without its macros: \\- is a hyphen, font changes are nothing."""
    plain = text(path).replace("\\-", "-")
    return re.sub(r"\\f[BIRP]|\\&", "", plain)


def man_sections(page):
    """Sub-section of jobctl(1) per command: from '.SS jobctl CMD' to the next heading."""
    parts = re.split(r'^\.S[SH] "?', page, flags=re.MULTILINE)
    return {c: p for p in parts for c in COMMANDS if p.startswith(f"jobctl {c}")}


def compare_options(binary, page, findings):
    sections = man_sections(page)
    for command in COMMANDS:
        if command not in sections:
            findings.append(f"docs/man/jobctl.1: no section '.SS jobctl {command}'")
            continue
        helped = set(OPTION.findall(help_of(binary, command).split("EXAMPLE:")[0])) - {"--help"}
        written = set(OPTION.findall(sections[command])) - {"--help"}
        if command == "resume":  # described by reference to run
            written |= helped & set(OPTION.findall(sections["run"]))
        for option in sorted(helped - written):
            findings.append(f"docs/man/jobctl.1: section {command} does not mention {option}, which --help has")
        for option in sorted(written - helped):
            if option not in OPTION.findall(sections["run"]) or command == "run":
                findings.append(f"docs/man/jobctl.1: section {command} mentions {option}, which --help does not have")


def compare_exit_codes(binary, page, findings):
    places = {"jobctl run --help": help_of(binary, "run"), "README.md": text("README.md"),
              "docs/operations.md": text("docs/operations.md"),
              "docs/man/jobctl.1": page[page.find(".SH EXIT STATUS"):]}
    for place, said in places.items():
        for code in EXIT_CODES:
            if not re.search(rf"(?<![\w.-]){code}(?![\w.-])", said):
                findings.append(f"{place}: exit code {code} is not stated")


def compare_commands(binary, findings):
    listed = set(re.findall(r"^  ([a-z]+)  ", help_of(binary), flags=re.MULTILINE))
    for command in sorted(listed - set(COMMANDS)):
        findings.append(f"jobctl has a command {command} that {__file__} does not know: give it a section in jobctl(1)")


def check_links(findings):
    pages = [f for f in files() if f.endswith(".md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text(page)):
            if "://" not in target and not (ROOT / page).parent.joinpath(target).exists():
                findings.append(f"{page}: link to {target}, which does not exist")
    return len(pages)


def check_quickstart(findings):
    """It builds what it names; what jobctl starts must be among that."""
    started = set(re.findall(r"^add_executable\((holdfast-\S+) ", text("daemon/CMakeLists.txt"), flags=re.MULTILINE))
    built = re.search(r"^  build (.+)$", text("quickstart"), flags=re.MULTILINE)
    missing = sorted(started - set(built[1].split() if built else []))
    if not started or missing:
        findings.append(f"quickstart does not build {', '.join(missing) or 'what daemon/CMakeLists.txt names'}")


def main():
    findings, binary = [], f"{sys.argv[1]}/jobctl"
    page = man_text("docs/man/jobctl.1")
    compare_commands(binary, findings)
    compare_options(binary, page, findings)
    compare_exit_codes(binary, page, findings)
    check_quickstart(findings)
    report("documentation", len(COMMANDS) + check_links(findings), findings)


main()
