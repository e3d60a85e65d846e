#!/usr/bin/env bash
# The documentation as a site, in site/, strictly, with its links followed: `make docs`.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.tools/docs/bin
"$bin/mkdocs" build --strict --quiet
# the pages link to code, and to the figures of the results
tar -c --exclude=__pycache__ results hypergradient lightning_modules data tests benchmarks setup.cfg | tar -x -C site
# mkdocs-jupyter leaves links to other pages as they are
sed -i.bak -E 's#href="(method|results|lightning)\.md#href="../\1/#g' site/tutorial/index.html
rm site/tutorial/index.html.bak
# a copy that everybody may read: as root, LinkChecker becomes nobody
copy=$(mktemp -d)
trap 'rm -r "$copy"' EXIT
cp -R site/. "$copy"
chmod -R a+rX "$copy"
"$bin/linkchecker" --no-status --no-warnings "$copy/index.html"
