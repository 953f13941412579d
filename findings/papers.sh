#!/usr/bin/env bash
# mkdocs build --strict fails on warnings, but together with --quiet it does not: --quiet raises the level of the logger,
# so that the handler that counts warnings for --strict never sees one. A broken link then passes with exit code 0.
set -euo pipefail
home=$(mktemp -d); trap 'rm -rf "$home"' EXIT; cd "$home"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check mkdocs==1.6.1
mkdir docs; printf 'site_name: x\n' > mkdocs.yml; printf '# x\n\n[a page](nowhere.md)\n' > docs/index.md
venv/bin/mkdocs --version
loud=0; venv/bin/mkdocs build --strict > loud.txt 2>&1 || loud=$?
quiet=0; venv/bin/mkdocs build --strict --quiet > quiet.txt 2>&1 || quiet=$?
grep -i "nowhere" loud.txt
echo "a broken link: --strict ends with $loud, --strict --quiet ends with $quiet and prints $(wc -c < quiet.txt) bytes"
test "$loud" -ne 0 && test "$quiet" -eq 0
