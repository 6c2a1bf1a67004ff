"""`python -m tests.bench [TOPIC…]`: every benchmark, or the topics named, as a table. Each measures in fresh child processes."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import tests.bench


def main(wanted: list[str]) -> int:
    topics = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.name.startswith("_"))
    unknown = sorted(set(wanted) - set(topics))
    if unknown:
        print(f"There is no benchmark {unknown[0]!r}. Choose of {', '.join(topics)}.", file=sys.stderr)
        return 1
    for topic in wanted or topics:
        print(f"\n{topic}", flush=True)
        for entry in importlib.import_module(f"tests.bench.{topic}").run():
            against = f"   {entry['against']}" if entry.get("against") else ""
            ratio = f"   ratio {entry['ratio']}" if entry.get("ratio") else ""
            print(f"  {entry['measure']:<52} {entry['value']:>12,} {entry['unit']:<8}{against}{ratio}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
